"""vLLM's CPU platform with sparse MLA: our attention backend where the platform has none."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from mate_plugin import report

NAME = "vllm.sparse"
BACKEND = "mate_plugin.indexer.vllm_attention.MateSparseMLABackend"
PLATFORM = f"{__name__}.MateCpuPlatform"
# Models whose layers were read and served; others keep vLLM's refusal.
MODEL_TYPES = ("deepseek_v32",)
DEFAULT_BLOCK = 64
logger = logging.getLogger("vllm.mate_plugin")


def choose() -> str | None:
    """Name of our platform where vLLM would take its own for CPUs, else None."""
    from vllm import platforms

    found = {name: probe() for name, probe in platforms.builtin_platform_plugins.items()}
    others = [name for name, platform in found.items() if platform and name != "cpu"]
    return PLATFORM if found.get("cpu") and not others and not _brought() else None


def _brought() -> bool:
    """Whether another package brings a platform for this machine: vLLM does not start with two."""
    from vllm.platforms import PLATFORM_PLUGINS_GROUP
    from vllm.plugins import load_plugins_by_group

    probes = load_plugins_by_group(PLATFORM_PLUGINS_GROUP).values()
    return any(
        _answers(probe) for probe in probes if not probe.__module__.startswith("mate_plugin.")
    )


def _answers(probe: Callable[[], str | None]) -> bool:
    try:
        return probe() is not None
    except Exception:  # vLLM takes no notice of such a plugin either
        return False


def is_active() -> bool:
    """Whether vLLM runs on our platform in this process."""
    from vllm.platforms import current_platform

    return type(current_platform).__name__ == "MateCpuPlatform"


def is_sparse(vllm_config: Any) -> bool:
    """Whether the model is one whose sparse attention we serve."""
    model = vllm_config.model_config
    if model is None:
        return False
    config = model.hf_text_config
    return (
        getattr(config, "model_type", None) in MODEL_TYPES
        and hasattr(config, "index_topk")
        and bool(model.use_mla)
    )


def serves(vllm_config: Any) -> bool:
    """Whether the model is such a one, and our indexer in the place of vLLM's."""
    return report.installed(NAME) and is_sparse(vllm_config)


def block_size(wanted: int | None) -> int:
    """Tokens per block of the caches: ``wanted`` where the user asked for a number."""
    from mate_plugin.kernels.mqa_checks import check_block

    if wanted is None:
        return DEFAULT_BLOCK
    check_block("--block-size", wanted)
    return wanted


@functools.cache
def platform_class() -> type:
    """Make the platform class, on top of the one that vLLM would take."""
    from vllm.platforms import cpu_platform_plugin
    from vllm.utils.import_utils import resolve_obj_by_qualname

    base: Any = resolve_obj_by_qualname(cpu_platform_plugin())

    class MateCpuPlatform(base):
        """vLLM's own platform, and sparse MLA on top."""

        @classmethod
        def get_attn_backend_cls(cls, selected_backend, attn_selector_config, num_heads=None):
            from vllm.config import get_current_vllm_config

            try:
                return super().get_attn_backend_cls(
                    selected_backend, attn_selector_config, num_heads
                )
            except NotImplementedError:
                sparse = attn_selector_config.use_sparse and attn_selector_config.use_mla
                if not (sparse and serves(get_current_vllm_config())):
                    raise
            if selected_backend is not None:
                raise ValueError(
                    "--attention-backend: expected none (sparse MLA on a CPU is served by"
                    f" mate-plugin alone), got {selected_backend.name}"
                )
            return BACKEND

        @classmethod
        def check_and_update_config(cls, vllm_config) -> None:
            cache, scheduler = vllm_config.cache_config, vllm_config.scheduler_config
            asked = cache.block_size if cache.user_specified_block_size else None
            chunked, prefix = scheduler.enable_chunked_prefill, cache.enable_prefix_caching
            batched_tokens = scheduler.max_num_batched_tokens
            super().check_and_update_config(vllm_config)
            if not serves(vllm_config):
                return
            # The CPU platform limits every MLA model to what its own kernels can do.
            cache.block_size = block_size(asked)
            cache.enable_prefix_caching = prefix
            scheduler.enable_chunked_prefill = chunked
            if chunked:
                scheduler.max_num_batched_tokens = batched_tokens
            logger.info(
                "mate-plugin: sparse MLA in blocks of %d tokens, chunked prefill %s, "
                "prefix caching %s",
                cache.block_size,
                "on" if chunked else "off",
                "on" if prefix else "off",
            )

    MateCpuPlatform.__module__ = __name__
    MateCpuPlatform.__qualname__ = "MateCpuPlatform"
    return MateCpuPlatform


def __getattr__(name: str) -> Any:
    # vLLM finds the class by this module's name; it can only be made once vLLM is imported.
    if name == "MateCpuPlatform":
        return platform_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

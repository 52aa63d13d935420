"""vLLM's seam for sparse attention on a CPU: platform, attention backend and indexer together."""

from __future__ import annotations

from typing import Any

from mate_plugin.indexer import sparse_layer, vllm_platform
from mate_plugin.layers.seams import lacking
from mate_plugin.report import Hook

NAME = vllm_platform.NAME


def install() -> Hook:
    """Put our indexer in the place of vLLM's, or say what stands against it."""
    try:
        absent = missing()
        if absent:
            return Hook(NAME, False, f"this vLLM lacks {', '.join(absent)}")
        own = own_backend()
        if own:
            return Hook(NAME, False, f"the platform has sparse attention of its own: {own}")
        reason = without_platform()
        if reason:
            return Hook(NAME, False, reason)
        what = sparse_layer.describe()
        fill()
    except (ImportError, AttributeError, NotImplementedError, ValueError) as error:
        return Hook(NAME, False, f"this vLLM does not fit: {error}")
    return Hook(NAME, True, what)


def missing() -> list[str]:
    """What this vLLM lacks for the indexer and the backends."""
    import vllm.forward_context as context
    from vllm.model_executor.layers import sparse_attn_indexer
    from vllm.model_executor.layers.attention import sparse_mla_attention
    from vllm.model_executor.models import deepseek_v2
    from vllm.utils import torch_utils
    from vllm.v1.attention import backend

    wanted: dict[Any, tuple[str, ...]] = {
        context: ("get_forward_context",),
        sparse_attn_indexer: ("SparseAttnIndexer",),
        sparse_mla_attention: ("SharedTopkIndicesBuffer",),
        deepseek_v2: ("Indexer", "per_token_group_quant_fp8"),
        torch_utils: (
            "LayerNameType",
            "_encode_layer_name",
            "_resolve_layer_name",
            "direct_register_custom_op",
        ),
        backend: ("AttentionMetadataBuilder", "MLAAttentionImpl", "MultipleOf"),
    }
    return lacking(wanted)


def own_backend() -> str | None:
    """The sparse backend of the platform below ours, or None where it refuses."""
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.attention.selector import AttentionSelectorConfig

    platform: Any = type(current_platform)
    if vllm_platform.is_active():
        platform = platform.__mro__[1]
    question = AttentionSelectorConfig(
        head_size=576,
        dtype=torch.bfloat16,
        kv_cache_dtype="auto",
        block_size=vllm_platform.DEFAULT_BLOCK,
        use_mla=True,
        use_sparse=True,
    )
    try:
        return str(platform.get_attn_backend_cls(None, question))
    except NotImplementedError:
        return None


def without_platform() -> str | None:
    """Why vLLM does not run on our platform, or None where it does."""
    from vllm.platforms import current_platform

    if vllm_platform.is_active():
        return None
    import vllm.envs as envs

    if envs.VLLM_TARGET_DEVICE == "cpu":
        return "VLLM_TARGET_DEVICE=cpu makes vLLM skip platform plugins; unset it"
    return f"expected the platform of mate-plugin, found {type(current_platform).__name__}"


def fill() -> None:
    """Exchange the indexer, and the Triton-only quantisation that it calls."""
    from vllm.model_executor.models import deepseek_v2

    from mate_plugin.indexer import vllm_indexer

    vllm_indexer.indexer_class()
    deepseek_v2.per_token_group_quant_fp8 = vllm_indexer.quantise_queries

"""SGLang's slots for DeepGEMM's scoring functions: four resolvers that its DSA indexer asks.

On GPUs opt-in on NVIDIA and taken on MUSA; on the platform mate_cpu part of sparse attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mate_plugin.kernels import library, select
from mate_plugin.kernels.mqa_logits import (
    fp8_mqa_logits,
    fp8_paged_mqa_logits,
    get_paged_mqa_logits_metadata,
)
from mate_plugin.layers import sglang_release
from mate_plugin.report import Hook

NAME = "sglang.deep_gemm"
_UTILS = "sglang.srt.layers.attention.dsa.utils"


def paged_mqa_logits(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule_metadata: torch.Tensor | None,
    max_len: int,
    clean_logits: bool = False,
) -> torch.Tensor:
    """``fp8_paged_mqa_logits``; makes the schedule where SGLang, which knows one for CUDA only,
    gives none."""
    if schedule_metadata is None:
        schedule_metadata = get_paged_mqa_logits_metadata(
            context_lens, kv_cache.shape[1], num_processors()
        )
    return fp8_paged_mqa_logits(
        q,
        kv_cache,
        weights,
        context_lens,
        block_table,
        schedule_metadata,
        max_len,
        clean_logits,
    )


def mqa_logits(
    q: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    ks: torch.Tensor,
    ke: torch.Tensor,
    clean_logits: bool = True,
) -> torch.Tensor:
    """``fp8_mqa_logits`` with SGLang's arguments."""
    return fp8_mqa_logits(q, kv, weights, ks, ke, clean_logits)


def num_processors() -> int:
    """Processors that the schedule of paged scores is for: those of the GPU, threads on a CPU."""
    kind = sglang_release.platform()
    if kind == sglang_release.MATE_CPU:
        return library.torch_threads()
    module: Any = getattr(torch, kind)
    return int(module.get_device_properties(module.current_device()).multi_processor_count)


SLOTS: dict[str, Callable[[], Any]] = {
    "resolve_num_sms": num_processors,
    "resolve_paged_mqa_logits_metadata_fn": lambda: get_paged_mqa_logits_metadata,
    "resolve_fp8_paged_mqa_logits_fn": lambda: paged_mqa_logits,
    "resolve_fp8_mqa_logits_fn": lambda: mqa_logits,
}
TARGETS = tuple(f"{_UTILS}.{name}" for name in SLOTS)


def install() -> Hook:
    """Replace the resolvers on a GPU, or say what stands against it."""
    platform = sglang_release.platform()
    choice = select.choose("paged_mqa_logits", platform)
    if choice.impl is None:
        return Hook(NAME, False, choice.reason)
    fill()
    return Hook(NAME, True, f"scores of the indexer: {choice.impl}, {choice.reason}")


def fill() -> None:
    """Ask SGLang to put our functions into the slots, once all plugins have run."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for target, resolve in zip(TARGETS, SLOTS.values(), strict=True):
        HookRegistry.register(target, resolve, HookType.REPLACE)

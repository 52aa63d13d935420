"""vLLM's slots for DeepGEMM's scoring functions, on GPUs: opt-in on NVIDIA, taken on MUSA.

vLLM's wrappers read the slots at each call, once its own lazy initialisation is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mate_plugin.kernels import select
from mate_plugin.kernels.mqa_logits import (
    fp8_mqa_logits,
    fp8_paged_mqa_logits,
    get_paged_mqa_logits_metadata,
)
from mate_plugin.layers import vllm_device
from mate_plugin.report import Hook

NAME = "vllm.deep_gemm"


def wanted_by_default() -> bool:
    """Whether the setting ``auto`` means yes: where vLLM has no DeepGEMM of its own."""
    try:
        from vllm.platforms import current_platform
    except ImportError:
        return False
    return bool(current_platform.device_type == "musa")


def install() -> Hook:
    """Fill the slots, or say what stands against it."""
    choice = select.choose("paged_mqa_logits", vllm_device.kind(), vllm_device.capability())
    if choice.impl is None:
        return Hook(NAME, False, choice.reason)
    lacking = [name for name in SLOTS if not hasattr(_module(), name)]
    if lacking:
        return Hook(NAME, False, f"this vLLM lacks {', '.join(lacking)}")
    fill()
    return Hook(NAME, True, f"scores of the indexer: {choice.impl}, {choice.reason}")


def fill() -> None:
    """Put our functions into the slots."""
    module = _module()
    # Fills the slots with DeepGEMM where that is installed; ours come on top.
    module._lazy_init()
    for name, function in SLOTS.items():
        setattr(module, name, function)


def paged_mqa_logits(
    q: tuple[torch.Tensor, torch.Tensor | None],
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    schedule_metadata: torch.Tensor,
    max_model_len: int,
    clean_logits: bool = False,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """``fp8_paged_mqa_logits`` with the arguments of DeepGEMM's FP8 and FP4 form.

    Raises NotImplementedError for FP4 queries and for request indices.
    """
    _refuse("indices", indices)
    return fp8_paged_mqa_logits(
        _fp8(q),
        kv_cache,
        weights,
        context_lens,
        block_tables,
        schedule_metadata,
        max_model_len,
        clean_logits,
    )


def mqa_logits(
    q: tuple[torch.Tensor, torch.Tensor | None],
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    cu_seqlen_ks: torch.Tensor,
    cu_seqlen_ke: torch.Tensor,
    clean_logits: bool = True,
) -> torch.Tensor:
    """``fp8_mqa_logits`` with the arguments of DeepGEMM's FP8 and FP4 form.

    Raises NotImplementedError for FP4 queries.
    """
    return fp8_mqa_logits(_fp8(q), kv, weights, cu_seqlen_ks, cu_seqlen_ke, clean_logits)


def mqa_metadata(
    context_lens: torch.Tensor,
    block_size: int,
    num_sms: int,
    indices: torch.Tensor | None = None,
) -> torch.Tensor:
    """``get_paged_mqa_logits_metadata``. Raises NotImplementedError for request indices."""
    _refuse("indices", indices)
    return get_paged_mqa_logits_metadata(context_lens, block_size, num_sms)


SLOTS: dict[str, Callable[..., torch.Tensor]] = {
    "_fp8_fp4_paged_mqa_logits_impl": paged_mqa_logits,
    "_fp8_fp4_mqa_logits_impl": mqa_logits,
    "_get_paged_mqa_logits_metadata_impl": mqa_metadata,
}


def _module() -> Any:
    from vllm.utils import deep_gemm

    return deep_gemm


def _fp8(q: tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor:
    values, scale = q
    _refuse("q[1] (the scales of FP4 queries)", scale)
    return values


def _refuse(name: str, value: object) -> None:
    if value is not None:
        raise NotImplementedError(f"{name}: expected None, got {type(value).__name__}")

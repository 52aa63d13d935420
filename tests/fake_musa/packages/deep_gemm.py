"""A stand-in for the vendor's deep_gemm: its signatures, the shapes it documents, plain torch.

``calls`` keeps the arguments of each call by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch_musa

from mate_plugin.kernels.reference import indexer as oracle

BLOCK = 64
Shape = tuple[int | None, ...]
calls: list[tuple[str, dict[str, Any]]] = []


def _expect(name: str, value: Any, dtype: torch.dtype, shape: Shape) -> None:
    assert isinstance(value, torch.Tensor), f"{name}: expected a tensor, got {value!r}"
    assert value.device.type == "musa", f"{name}: expected the device musa, got {value.device}"
    assert value.dtype == dtype, f"{name}: expected {dtype}, got {value.dtype}"
    fits = value.dim() == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, value.shape, strict=True)
    )
    assert fits, f"{name}: expected the shape {shape}, got {tuple(value.shape)}"
    assert value.stride(-1) == 1, f"{name}: expected dense rows, got strides {value.stride()}"


def _recorded(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    signature = inspect.signature(function)

    def call(*args: Any, **options: Any) -> torch.Tensor:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        calls.append((function.__name__, dict(bound.arguments)))
        return function(*args, **options)

    return call


@_recorded
def get_paged_mqa_logits_metadata(
    context_lens: torch.Tensor, block_kv: int, num_mps: int = 0
) -> torch.Tensor:
    _expect("context_lens", context_lens, torch.int32, (None, 1))
    assert block_kv == BLOCK, f"block_kv: expected {BLOCK}, got {block_kv}"
    num_mps = num_mps or torch_musa.PROPERTIES.multi_processor_count
    return oracle.paged_mqa_logits_metadata(context_lens.cpu(), block_kv, num_mps).to("musa")


@_recorded
def fp8_paged_mqa_logits(
    q: torch.Tensor,
    fused_kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule_meta: torch.Tensor,
    max_context_len: int,
    clean_logits: bool,
) -> torch.Tensor:
    batch, _, heads, depth = q.shape
    _expect("q", q, torch.float8_e4m3fn, (batch, 1, heads, depth))
    _expect("fused_kv_cache", fused_kv_cache, torch.uint8, (None, BLOCK, 1, depth + 4))
    _expect("weights", weights, torch.float32, (batch, heads))
    _expect("context_lens", context_lens, torch.int32, (batch, 1))
    _expect("block_table", block_table, torch.int32, (batch, None))
    processors = torch_musa.PROPERTIES.multi_processor_count
    _expect("schedule_meta", schedule_meta, torch.int32, (processors + 1, 2))
    schedule = oracle.paged_mqa_logits_metadata(context_lens.cpu(), BLOCK, processors)
    assert torch.equal(schedule_meta.cpu(), schedule), "schedule_meta: is of other context_lens"
    logits = oracle.paged_mqa_logits(
        *(x.cpu() for x in (q, fused_kv_cache, weights, context_lens, block_table)),
        max_context_len,
        _outside(clean_logits),
    )
    return logits.float().to("musa")


@_recorded
def fp8_mqa_logits(
    q: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor,
    clean_logits: bool = False,
    max_seqlen_k: int = 0,
) -> torch.Tensor:
    rows, heads, depth = q.shape
    assert heads >= 32, f"q: expected at least 32 heads, got {heads}"
    _expect("q", q, torch.float8_e4m3fn, (rows, heads, depth))
    _expect("kv[0]", kv[0], torch.float8_e4m3fn, (None, depth))
    _expect("kv[1]", kv[1], torch.float32, (kv[0].shape[0],))
    _expect("weights", weights, torch.float32, (rows, heads))
    _expect("cu_seq_len_k_start", cu_seq_len_k_start, torch.int32, (rows,))
    _expect("cu_seq_len_k_end", cu_seq_len_k_end, torch.int32, (rows,))
    assert not max_seqlen_k, f"max_seqlen_k: expected 0, got {max_seqlen_k}"
    logits = oracle.mqa_logits(
        q.cpu(),
        (kv[0].cpu(), kv[1].cpu()),
        weights.cpu(),
        cu_seq_len_k_start.cpu(),
        cu_seq_len_k_end.cpu(),
        clean_value=_outside(clean_logits),
    )
    return logits.float().to("musa")


def _outside(clean_logits: bool) -> float:
    # Without cleaning anything may stand there; what would be selected shows who reads it.
    return float("-inf") if clean_logits else 1e30

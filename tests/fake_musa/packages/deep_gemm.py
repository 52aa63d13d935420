"""A stand-in for the vendor's deep_gemm: its signatures, the shapes it documents, plain torch."""

from __future__ import annotations

import torch
import torch_musa
from vendor_calls import UNCLEAN, calls, expect, recorded

from mate_plugin.kernels.reference import indexer as oracle

__all__ = ["calls"]

BLOCK = 64


@recorded
def get_paged_mqa_logits_metadata(
    context_lens: torch.Tensor, block_kv: int, num_mps: int = 0
) -> torch.Tensor:
    expect("context_lens", context_lens, torch.int32, (None, 1))
    assert block_kv == BLOCK, f"block_kv: expected {BLOCK}, got {block_kv}"
    num_mps = num_mps or torch_musa.PROPERTIES.multi_processor_count
    return oracle.paged_mqa_logits_metadata(context_lens.cpu(), block_kv, num_mps).to("musa")


@recorded
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
    expect("q", q, torch.float8_e4m3fn, (batch, 1, heads, depth))
    expect("fused_kv_cache", fused_kv_cache, torch.uint8, (None, BLOCK, 1, depth + 4))
    expect("weights", weights, torch.float32, (batch, heads))
    expect("context_lens", context_lens, torch.int32, (batch, 1))
    expect("block_table", block_table, torch.int32, (batch, None))
    processors = torch_musa.PROPERTIES.multi_processor_count
    expect("schedule_meta", schedule_meta, torch.int32, (processors + 1, 2))
    schedule = oracle.paged_mqa_logits_metadata(context_lens.cpu(), BLOCK, processors)
    assert torch.equal(schedule_meta.cpu(), schedule), "schedule_meta: is of other context_lens"
    logits = oracle.paged_mqa_logits(
        *(x.cpu() for x in (q, fused_kv_cache, weights, context_lens, block_table)),
        max_context_len,
        _outside(clean_logits),
    )
    return logits.float().to("musa")


@recorded
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
    expect("q", q, torch.float8_e4m3fn, (rows, heads, depth))
    expect("kv[0]", kv[0], torch.float8_e4m3fn, (None, depth))
    expect("kv[1]", kv[1], torch.float32, (kv[0].shape[0],))
    expect("weights", weights, torch.float32, (rows, heads))
    expect("cu_seq_len_k_start", cu_seq_len_k_start, torch.int32, (rows,))
    expect("cu_seq_len_k_end", cu_seq_len_k_end, torch.int32, (rows,))
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
    return float("-inf") if clean_logits else UNCLEAN

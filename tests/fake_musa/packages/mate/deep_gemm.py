"""The vendor's indexer functions."""

from __future__ import annotations

import torch
from torch_musa import PROPERTIES, launch
from vendor_calls import UNCLEAN, contiguous, expect, recorded

from mate_plugin.kernels.reference import indexer as oracle

Tensor = torch.Tensor
BLOCK, DRAFTS, HEADS, DEPTHS = 64, (1, 2, 4), (32, 64), (32, 64, 128)
# Rows of the results start at multiples of these.
PAGED_STRIDE, FLAT_STRIDE = 256, 128


def _padded(rows: int, columns: int, stride: int) -> Tensor:
    width = -(-columns // stride) * stride
    return torch.empty(rows, width, dtype=torch.float32, device="musa")[:, :columns]


def _lengths(context_lens: Tensor, batch: int | None, next_n: int | None) -> None:
    if context_lens.dim() == 2:
        expect("context_lens", context_lens, torch.int32, (batch, next_n))
        assert context_lens.shape[1] in DRAFTS
    else:
        expect("context_lens", context_lens, torch.int32, (batch,))
    contiguous(context_lens=context_lens)


def _made_for(heads: int, depth: int) -> None:
    assert heads in HEADS, f"q: {heads} heads"
    assert depth in DEPTHS, f"q: D = {depth}"


def _last(context_lens: Tensor) -> Tensor:
    """Of a request's drafts the last one says how long it is."""
    lens = context_lens.cpu()
    return lens if lens.dim() == 1 else lens[:, -1]


@recorded
def get_paged_mqa_logits_metadata(context_lens: Tensor, block_kv: int, num_mps: int = 0) -> Tensor:
    assert block_kv == BLOCK, f"block_kv: expected {BLOCK}, got {block_kv}"
    assert context_lens.shape[0] > 0
    _lengths(context_lens, None, None)
    num_mps = num_mps or PROPERTIES.multi_processor_count
    assert 0 < num_mps <= PROPERTIES.multi_processor_count, f"num_mps: got {num_mps}"
    schedule = torch.empty(num_mps + 1, 2, dtype=torch.int32, device="musa")

    def run() -> None:
        schedule.copy_(oracle.paged_mqa_logits_metadata(_last(context_lens), block_kv, num_mps))

    launch(run)
    return schedule


@recorded
def fp8_paged_mqa_logits(
    q: Tensor,
    fused_kv_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    schedule_meta: Tensor,
    max_context_len: int,
    clean_logits: bool,
) -> Tensor:
    batch, next_n, heads, depth = q.shape
    assert next_n in DRAFTS, f"q: next_n = {next_n}"
    _made_for(heads, depth)
    expect("q", q, torch.float8_e4m3fn, (batch, next_n, heads, depth))
    expect("fused_kv_cache", fused_kv_cache, torch.uint8, (None, BLOCK, 1, depth + 4))
    assert fused_kv_cache.stride()[1:] == (depth + 4, depth + 4, 1)
    assert fused_kv_cache.stride(0) % 4 == 0
    expect("weights", weights, torch.float32, (batch * next_n, heads))
    _lengths(context_lens, batch, next_n)
    expect("block_table", block_table, torch.int32, (batch, None))
    expect("schedule_meta", schedule_meta, torch.int32, (None, 2))
    contiguous(q=q, weights=weights, schedule_meta=schedule_meta)
    logits = _padded(batch * next_n, max_context_len, PAGED_STRIDE)

    def run() -> None:
        processors = schedule_meta.shape[0] - 1
        schedule = oracle.paged_mqa_logits_metadata(_last(context_lens), BLOCK, processors)
        assert torch.equal(schedule_meta.cpu(), schedule), "schedule_meta: is of other context_lens"
        operands = (q, fused_kv_cache, weights, context_lens, block_table)
        outside = float("-inf") if clean_logits else UNCLEAN
        found = oracle.paged_mqa_logits(*(x.cpu() for x in operands), max_context_len, outside)
        logits.copy_(found.float())

    launch(run)
    return logits


@recorded
def fp8_mqa_logits(
    q: Tensor,
    kv: tuple[Tensor, Tensor],
    weights: Tensor,
    cu_seq_len_k_start: Tensor,
    cu_seq_len_k_end: Tensor,
    clean_logits: bool = False,
    max_seqlen_k: int = 0,
) -> Tensor:
    rows, heads, depth = q.shape
    keys, scales = kv
    _made_for(heads, depth)
    expect("q", q, torch.float8_e4m3fn, (rows, heads, depth))
    expect("kv[0]", keys, torch.float8_e4m3fn, (None, depth))
    expect("kv[1]", scales, torch.float32, (keys.shape[0],))
    expect("weights", weights, torch.float32, (rows, heads))
    expect("cu_seq_len_k_start", cu_seq_len_k_start, torch.int32, (rows,))
    expect("cu_seq_len_k_end", cu_seq_len_k_end, torch.int32, (rows,))
    contiguous(q=q, weights=weights, start=cu_seq_len_k_start, end=cu_seq_len_k_end)
    if max_seqlen_k > 0 and clean_logits:
        raise ValueError("max_seqlen_k is not supported with clean_logits")
    assert max_seqlen_k <= keys.shape[0], f"max_seqlen_k: got {max_seqlen_k}"
    logits = _padded(rows, max_seqlen_k or keys.shape[0], FLAT_STRIDE)

    def run() -> None:
        found = oracle.mqa_logits(
            q.cpu(),
            (keys.cpu(), scales.cpu()),
            weights.cpu(),
            cu_seq_len_k_start.cpu(),
            cu_seq_len_k_end.cpu(),
            max_seqlen_k,
            float("-inf") if clean_logits else UNCLEAN,
        )
        logits.copy_(found.float())

    launch(run)
    return logits

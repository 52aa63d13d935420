"""Contracts of the indexer's functions; contents of index tensors where ``MATE_PLUGIN_CHECK=1``."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from mate_plugin.kernels.checks import ceil_div, contract, describe, integer

_METADATA = {
    dims: contract("paged_mqa_metadata", f"context_lens: i32 {shape}")
    for dims, shape in ((1, "[B]"), (2, "[B, NEXT_N]"))
}
_PAGED = {
    dims: contract(
        "paged_mqa_logits",
        "q: fp8 [B, NEXT_N, H, D] rows",
        "fused_kv_cache: u8 [BLOCKS, BLOCK, 1, FUSED]",
        "weights: f32 [R, H]",
        f"context_lens: i32 {shape}",
        "block_table: i32 [B, MAX_BLOCKS] rows",
        "schedule_meta: i32 [STARTS, 2]",
        "out: f32 [R, MAX_LEN] out optional",
        where={"R": "B * NEXT_N", "FUSED": "D + 4", "MAX_LEN": "max_context_len"},
    )
    for dims, shape in ((1, "[B]"), (2, "[B, NEXT_N]"))
}
check_flat = contract(
    "mqa_logits",
    "q: fp8 [S, H, D] rows",
    "kv[0]: fp8 [T, D] rows",
    "kv[1]: f32 [T]",
    "weights: f32 [S, H]",
    "cu_seq_len_k_start: i32 [S]",
    "cu_seq_len_k_end: i32 [S]",
    "out: f32 [S, COLUMNS] out optional",
    where={"COLUMNS": "max_seqlen_k if max_seqlen_k > 0 else T"},
)
_SELECT = {
    dims: contract(
        "index_topk",
        "q: fp8 [T, H, D] rows",
        f"kv_cache: u8 {shape}",
        "weights: f32 [T, H]",
        "context_lens: i32 [B]",
        "query_start_loc: i32 [STARTS]",
        "block_table: i32 [B, MAX_BLOCKS] rows",
        "out: i32 [T, K] out optional",
        where={"FUSED": "D + 4", "STARTS": "B + 1", "K": "k"},
    )
    for dims, shape in ((3, "[BLOCKS, BLOCK, FUSED]"), (4, "[BLOCKS, BLOCK, 1, FUSED]"))
}

DEPTH_UNIT = 16
SMALLEST_BLOCK = 16


def check_metadata(context_lens: Any) -> None:
    """Lengths of one or two dimensions."""
    _METADATA[_rank(context_lens)](context_lens)


def check_paged(q: Any, cache: Any, weights: Any, context_lens: Any, *others: Any) -> None:
    """The tensors of the paged logits fit together."""
    _PAGED[_rank(context_lens)](q, cache, weights, context_lens, *others)
    schedule_meta = others[1]
    if schedule_meta.shape[0] < 2:
        raise ValueError(
            "schedule_meta: expected shape (num_mps + 1, 2) for at least one processor,"
            f" got {tuple(schedule_meta.shape)}"
        )


def check_select(
    q: Any, cache: Any, weights: Any, query_start_loc: Any, context_lens: Any, *others: Any
) -> None:
    """The tensors of the fused scores and selection fit together."""
    # Whatever is neither of three nor of four dimensions is explained by the contract of four.
    dims = 3 if isinstance(cache, torch.Tensor) and cache.dim() == 3 else 4
    _SELECT[dims](q, cache, weights, context_lens, query_start_loc, *others)


def _rank(context_lens: Any) -> int:
    # Whatever is neither of one nor of two dimensions is explained by the contract of one.
    return 2 if isinstance(context_lens, torch.Tensor) and context_lens.dim() == 2 else 1


def check_block(name: str, block: Any) -> None:
    """Tokens per block of a K cache."""
    integer(name, block, SMALLEST_BLOCK, optional=False)
    if block & (block - 1):
        raise ValueError(
            f"{name}: expected a power of two of at least {SMALLEST_BLOCK}, got {block}"
        )


def check_depth(q: torch.Tensor, name: str = "q") -> None:
    """D is a multiple of what the kernels step by."""
    depth = q.shape[-1]
    if depth == 0 or depth % DEPTH_UNIT:
        raise ValueError(f"{name}: expected D to be a multiple of {DEPTH_UNIT}, got D = {depth}")


def check_clean(clean_logits: Any, clean_value: Any) -> None:
    """How to fill what is not visible."""
    if not isinstance(clean_logits, bool):
        raise TypeError(f"clean_logits: expected a bool, got {describe(clean_logits)}")
    if not isinstance(clean_value, (int, float)) or isinstance(clean_value, bool):
        raise TypeError(f"clean_value: expected a number, got {describe(clean_value)}")


def check_cache(name: str, cache: torch.Tensor) -> None:
    """Each block (num_blocks, block, ..., D + 4) is contiguous; blocks may be apart."""
    num_blocks, block, *_, width = cache.shape
    check_block(f"{name}: block size", block)
    stride = cache.stride()
    if stride[1] != width or stride[-1] != 1:
        raise ValueError(
            f"{name}: expected each block to be contiguous,"
            f" got strides {stride} for shape {tuple(cache.shape)}"
        )
    if num_blocks > 1 and stride[0] % 4:
        raise ValueError(f"{name}: expected stride(0) to be a multiple of 4, got {stride[0]}")


def check_budget(budget: Any, k: int, block: int) -> None:
    """Bytes of logits: k values and a run of four blocks of tokens, at least."""
    integer("budget", budget, 0, optional=False)
    least = 4 * (k + 4 * block)
    if budget < least:
        raise ValueError(
            f"budget: expected at least {least} bytes for one row of k = {k}, got {budget}"
        )


def _longest(context_lens: torch.Tensor) -> list[int]:
    """Tokens of each request that any of its draft tokens sees."""
    if context_lens.dim() == 1:
        return context_lens.tolist()
    return [max(row, default=0) for row in context_lens.tolist()]


def check_lens(context_lens: torch.Tensor, most: int, table_width: int, block: int) -> None:
    """Every length fits the result's columns and the block table."""
    for request, length in enumerate(_longest(context_lens)):
        if length > most:
            raise ValueError(
                f"context_lens: expected at most max_context_len = {most} tokens,"
                f" got {length} for request {request}"
            )
    check_table_width(context_lens, table_width, block)


def check_table_width(context_lens: torch.Tensor, table_width: int, block: int) -> None:
    """Every length fits the block table."""
    for request, length in enumerate(_longest(context_lens)):
        if length > table_width * block:
            raise ValueError(
                f"block_table: expected {ceil_div(length, block)} blocks of {block} tokens for"
                f" request {request} of {length} tokens, got {table_width} columns"
            )


def check_query_rows(
    query_start_loc: torch.Tensor, context_lens: torch.Tensor, num_rows: int
) -> None:
    """Requests follow each other within the rows, and none has more rows than tokens.

    A length of 0 stands for a request that is not there, whatever its rows.
    """
    starts = query_start_loc.tolist()
    if starts[0] != 0:
        raise ValueError(f"query_start_loc: expected 0 for request 0, got {starts[0]}")
    for request, (first, end) in enumerate(pairwise(starts)):
        if end < first or end > num_rows:
            raise ValueError(
                f"query_start_loc: expected offsets from 0 to {num_rows} that do not fall,"
                f" got {end} after {first} at the end of request {request}"
            )
        length = int(context_lens[request])
        if length != 0 and length < end - first:
            raise ValueError(
                f"context_lens: expected at least {end - first} tokens for the query rows of"
                f" request {request}, got {length}"
            )


def check_blocks(
    block_table: torch.Tensor, context_lens: torch.Tensor, num_blocks: int, block: int
) -> None:
    """Every block that a request's tokens lie in exists."""
    bad = ((block_table < 0) | (block_table >= num_blocks)).nonzero().tolist()
    lengths = _longest(context_lens)
    for request, column in bad:
        if column * block < lengths[request]:
            raise ValueError(
                f"block_table: expected blocks in [0, {num_blocks}),"
                f" got {int(block_table[request, column])} at column {column} of request {request},"
                f" which has {lengths[request]} tokens"
            )


def check_schedule(schedule_meta: torch.Tensor, expected: torch.Tensor) -> None:
    """The schedule is the one that these lengths give."""
    for processor, (row, wanted) in enumerate(
        zip(schedule_meta.tolist(), expected.tolist(), strict=True)
    ):
        if row != wanted:
            raise ValueError(
                f"schedule_meta: expected processor {processor} to start at (request, segment) ="
                f" {tuple(wanted)} for these context_lens, got {tuple(row)};"
                " make it from the same context_lens and block size"
            )


def check_ranges(start: torch.Tensor, end: torch.Tensor, tokens: int, columns: int) -> None:
    """Ranges that are not empty lie within the tokens and, if compressed, within the columns."""
    for row, (first, last) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        if first >= last:
            continue
        if first < 0 or last > tokens:
            raise ValueError(
                f"cu_seq_len_k_start, cu_seq_len_k_end: expected a range within [0, {tokens}),"
                f" got [{first}, {last}) for row {row}"
            )
        if columns > 0 and last - first > columns:
            raise ValueError(
                f"max_seqlen_k: expected at least {last - first} for the range [{first}, {last})"
                f" of row {row}, got {columns}"
            )

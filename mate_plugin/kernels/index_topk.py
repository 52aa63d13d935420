"""The lightning indexer in one call: scores of a ragged paged batch, and the best tokens."""

from __future__ import annotations

import torch

from mate_plugin.kernels import library
from mate_plugin.kernels.checks import index_checks_enabled, integer
from mate_plugin.kernels.mqa_checks import (
    check_blocks,
    check_budget,
    check_cache,
    check_depth,
    check_query_rows,
    check_select,
    check_table_width,
)

_index_topk = library.define(
    "index_topk",
    "(Tensor q, Tensor cache, Tensor weights, Tensor query_start_loc, Tensor context_lens,"
    " Tensor block_table, Tensor(a!) out, int q_tag, int budget, int num_threads, int stream)"
    " -> ()",
)


def index_topk(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    query_start_loc: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    k: int,
    *,
    budget: int,
    out: torch.Tensor | None = None,
    num_mp: int | None = None,
) -> torch.Tensor:
    """Tokens of the k largest indexer logits of each query row, within a budget of memory.

    Request b has the n query rows ``query_start_loc[b] <= row < query_start_loc[b + 1]``; they are
    its last n tokens, so that row ``query_start_loc[b] + i`` sees the tokens
    ``t < context_lens[b] - n + i + 1``. Logits are those of
    :func:`~mate_plugin.kernels.mqa_logits.fp8_paged_mqa_logits`, the order is that of
    :func:`~mate_plugin.kernels.topk.top_k`.

    Rows are scored in chunks whose logits fit the budget. Where those of one row do not, its
    tokens are scored run by run, each merged with the best k so far. The outcome is the same bits
    for any budget and any number of threads.

    Args:
        q: FP8 (T, heads, D), D a multiple of 16 and contiguous, other strides free.
        kv_cache: uint8 (num_blocks, block, D + 4) or (num_blocks, block, 1, D + 4). A block holds
            ``block`` rows of e4m3 and then ``block`` float32 scales; blocks may be apart,
            ``stride(0)`` is a multiple of 4. ``block`` is a power of two of at least 16.
        weights: float32 (T, heads), any strides.
        query_start_loc: int32 (B + 1,), the first row of each request and the end of the last one.
            Rows of no request (padding) select nothing. Without index checks, offsets that fall or
            lie outside of the T rows are cut.
        context_lens: int32 (B,), tokens of each request with its query rows. Rows that see 0
            tokens or fewer select nothing.
        block_table: int32 (B, max_blocks), any row stride. Without index checks, lengths past the
            table are cut, and tokens of blocks that do not exist count as -inf.
        k: how many tokens to take, >= 1.
        budget: bytes for logits and for the best values carried from run to run: one allocation,
            of 16 MiB at most beside k values. The kernels' scratch comes on top, whatever the
            context: a tile of keys, the queries of a unit of work and at most 64 k + 200 000 bytes
            of candidates for each thread.
        out: int32 (T, k), any row stride; written and returned.
        num_mp: at most so many threads; None takes all.

    Returns:
        int32 (T, k): ascending tokens, then -1. A row that sees no more than k tokens takes all of
        them and is not scored, even tokens of blocks that do not exist.

    Raises:
        TypeError, ValueError: an argument is not as described, or the budget too small for k values
            and a run of four blocks; with index checks (``MATE_PLUGIN_CHECK=1``) also offsets,
            lengths and block numbers that cannot be.
        NotImplementedError: there are no kernels for the device.
    """
    integer("k", k, 1, optional=False)
    integer("num_mp", num_mp, 1)
    check_select(q, kv_cache, weights, query_start_loc, context_lens, block_table, out, k)
    check_depth(q)
    check_cache("kv_cache", kv_cache)
    num_blocks, block = kv_cache.shape[:2]
    check_budget(budget, k, block)
    if index_checks_enabled():
        check_query_rows(query_start_loc, context_lens, q.shape[0])
        check_table_width(context_lens, block_table.shape[1], block)
        check_blocks(block_table, context_lens, num_blocks, block)
    if out is None:
        out = torch.empty((q.shape[0], k), dtype=torch.int32, device=q.device)
    _index_topk(
        q,
        kv_cache,
        weights,
        query_start_loc,
        context_lens,
        block_table,
        out,
        library.tag(q.dtype),
        budget,
        library.threads(num_mp, q),
        library.stream(q),
    )
    return out


def logits_peak() -> int:
    """Most bytes that the calls of :func:`index_topk` held at one time, all together.

    Counts the whole process since its start or the last :func:`reset_logits_peak`, each kind of
    device for itself; the part of a call is within its budget.
    """
    return max(int(one.logits_peak()) for one in library.modules())


def reset_logits_peak() -> None:
    """Starts :func:`logits_peak` again from what is held now."""
    for one in library.modules():
        one.reset_logits_peak()

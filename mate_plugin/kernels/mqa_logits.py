"""Scores of the lightning indexer (published as ``mate.deep_gemm``), paged and not.

    logits[row, t] = k_scale[t] * sum_h weights[row, h] * relu(q[row, h] . k[t])

in float32, heads in order (DeepSeek-V3.2-Exp technical report, lightning indexer). A NaN in ``q``
or ``weights`` makes the visible part of its row NaN, one in a key or its scale the column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mate_plugin.kernels import library
from mate_plugin.kernels.checks import index_checks_enabled, integer, pair
from mate_plugin.kernels.mqa_checks import (
    check_block,
    check_blocks,
    check_cache,
    check_clean,
    check_depth,
    check_flat,
    check_lens,
    check_metadata,
    check_paged,
    check_ranges,
    check_schedule,
)

_metadata = library.define(
    "paged_mqa_metadata",
    "(Tensor context_lens, Tensor(a!) out, int block_kv, int num_threads, int stream) -> ()",
)
_paged_logits = library.define(
    "paged_mqa_logits",
    "(Tensor q, Tensor cache, Tensor weights, Tensor context_lens, Tensor block_table,"
    " Tensor(a!) out, int q_tag, bool clean, float clean_value, Tensor schedule_meta,"
    " int num_threads, int stream) -> ()",
    extras=1,
)
_logits = library.define(
    "mqa_logits",
    "(Tensor q, Tensor k, Tensor k_scale, Tensor weights, Tensor first, Tensor end,"
    " Tensor(a!) out, int q_tag, int k_tag, bool compressed, bool clean, float clean_value,"
    " int num_threads, int stream) -> ()",
)


def _run(
    name: str,
    op: Callable[..., None],
    operands: tuple[torch.Tensor, ...],
    out: torch.Tensor | None,
    shape: tuple[int, int],
    options: tuple[Any, ...],
) -> torch.Tensor:
    """The op on checked arguments, with the result between ``operands`` and ``options``."""
    device = operands[0].device
    if out is None and device.type == "musa" and not library.is_compiling():
        from mate_plugin.kernels.vendor.route import logits

        # The vendor's functions return tensors of their own.
        if (found := logits(name, *operands, shape[1], *options)) is not None:
            return found
    if out is None:
        out = _new_logits(*shape, device)
    op(*operands, out, *options)
    return out


def _new_logits(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    # On a GPU rows start where cache lines do, or neighbours would write parts of the same ones.
    line = 1 if device.type == "cpu" else 32
    width = -(-columns // line) * line
    return torch.empty((rows, width), dtype=torch.float32, device=device)[:, :columns]


def get_paged_mqa_logits_metadata(
    context_lens: torch.Tensor, block_kv: int, num_mps: int = 0
) -> torch.Tensor:
    """Split the scores of a paged batch evenly over processors.

    The work list holds, request by request, every segment of ``4 * block_kv`` tokens. Each
    processor takes a run of it; runs differ by at most one segment, the longer ones come first.

    Args:
        context_lens: int32 (batch,), or (batch, next_n) where the largest of a row counts. Any
            strides. Lengths of 0 and below have no segments.
        block_kv: tokens per block of the K cache, a power of two of at least 16.
        num_mps: processors to split for; 0 takes those of the device (threads on a CPU).

    Returns:
        int32 (num_mps + 1, 2): row p holds the request and its segment that processor p starts
        with. (batch, 0) stands for the end: in the last row, and for processors without work.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    check_metadata(context_lens)
    check_block("block_kv", block_kv)
    integer("num_mps", num_mps, 0, optional=False)
    count = num_mps if num_mps > 0 else library.processors(context_lens.device)
    out = torch.empty((count + 1, 2), dtype=torch.int32, device=context_lens.device)
    _metadata(context_lens, out, block_kv, 1, library.stream(context_lens))
    return out


def fp8_paged_mqa_logits(
    q: torch.Tensor,
    fused_kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    schedule_meta: torch.Tensor,
    max_context_len: int,
    clean_logits: bool,
    *,
    clean_value: float = float("-inf"),
    out: torch.Tensor | None = None,
    num_mp: int | None = None,
) -> torch.Tensor:
    """Indexer logits of draft tokens against a paged K cache.

    Args:
        q: FP8 (batch, next_n, heads, D), D a multiple of 16 and contiguous.
        fused_kv_cache: uint8 (num_blocks, block, 1, D + 4). A block holds ``block`` rows of e4m3
            and then ``block`` float32 scales; blocks may be apart, ``stride(0)`` is a multiple of
            4. ``block`` is a power of two of at least 16.
        weights: float32 (batch * next_n, heads), any strides.
        context_lens: int32, any strides. (batch,): draft token j of request b sees tokens
            ``t <= context_lens[b] - next_n + j``. (batch, next_n): it sees
            ``t < context_lens[b, j]``, in any order over j. 0 and below sees nothing.
        block_table: int32 (batch, max_blocks), any row stride. Entries past a request's length are
            not read. Without index checks, tokens of blocks that do not exist and lengths past
            the table or ``max_context_len`` count as not visible (the vendor's kernels on ``musa``
            expect none, and no negative lengths).
        schedule_meta: int32 (num_mps + 1, 2) of :func:`get_paged_mqa_logits_metadata`. Only the
            vendor's kernels on ``musa`` follow it; ours split work by themselves.
        max_context_len: columns of the result.
        clean_logits: fill what is not visible with ``clean_value``. Unspecified otherwise.
        clean_value: -inf unless the caller wants another (the published text says zero, which
            would outrank negative logits).
        out: float32 (batch * next_n, max_context_len), any row stride; written and returned. The
            vendor's kernels write a tensor of their own, which is copied then, and in a compiled
            graph.
        num_mp: at most so many threads; None takes all.

    Returns:
        float32 (batch * next_n, max_context_len). Callers must honour its strides: devices may
        return a view of wider rows.

    Raises:
        TypeError, ValueError: an argument is not as described; with index checks
            (``MATE_PLUGIN_CHECK=1``) also lengths, block numbers and schedules that cannot be.
    """
    integer("max_context_len", max_context_len, 0, optional=False)
    integer("num_mp", num_mp, 1)
    check_clean(clean_logits, clean_value)
    check_paged(
        q,
        fused_kv_cache,
        weights,
        context_lens,
        block_table,
        schedule_meta,
        out,
        max_context_len,
    )
    check_depth(q)
    check_cache("fused_kv_cache", fused_kv_cache)
    if index_checks_enabled():
        block, columns = fused_kv_cache.shape[1], block_table.shape[1]
        check_lens(context_lens, max_context_len, columns, block)
        check_blocks(block_table, context_lens, fused_kv_cache.shape[0], block)
        expected = get_paged_mqa_logits_metadata(context_lens, block, schedule_meta.shape[0] - 1)
        check_schedule(schedule_meta, expected)
    shape = (q.shape[0] * q.shape[1], max_context_len)
    operands = (q, fused_kv_cache, weights, context_lens, block_table)
    options = (
        library.tag(q.dtype),
        clean_logits,
        float(clean_value),
        schedule_meta,
        library.threads(num_mp, q),
        library.stream(q),
    )
    return _run("paged_mqa_logits", _paged_logits, operands, out, shape, options)


def fp8_mqa_logits(
    q: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor,
    clean_logits: bool = True,
    max_seqlen_k: int = 0,
    *,
    clean_value: float = float("-inf"),
    out: torch.Tensor | None = None,
    num_mp: int | None = None,
) -> torch.Tensor:
    """Indexer logits of query rows against ranges of one array of keys (DeepGEMM's form).

    Args:
        q: FP8 (S, heads, D), D a multiple of 16 and contiguous.
        kv: FP8 (T, D) with contiguous D, and its float32 scales (T,) or (T, 1).
        weights: float32 (S, heads), any strides.
        cu_seq_len_k_start: int32 (S,), the first token that row s sees.
        cu_seq_len_k_end: int32 (S,), the token past the last one. Without index checks, what lies
            outside of the T tokens (or of ``max_seqlen_k``) counts as not visible; the vendor's
            kernels on ``musa`` expect none.
        clean_logits: fill what is not visible with ``clean_value``. Unspecified otherwise.
        max_seqlen_k: 0, or the width of the compressed form, in which column j of row s is the
            logit of token ``cu_seq_len_k_start[s] + j``; ``clean_logits`` is False then.
        clean_value: -inf unless the caller wants another.
        out: float32 of the result's shape, any row stride; written and returned, as above.
        num_mp: at most so many threads; None takes all.

    Returns:
        float32 (S, T), or (S, max_seqlen_k) in the compressed form. Callers must honour its
        strides.

    Raises:
        TypeError, ValueError: an argument is not as described; with index checks
            (``MATE_PLUGIN_CHECK=1``) also ranges that are not within the tokens or the columns.
    """
    k, k_scale = pair("kv", kv)
    integer("max_seqlen_k", max_seqlen_k, 0, optional=False)
    integer("num_mp", num_mp, 1)
    check_clean(clean_logits, clean_value)
    if isinstance(k_scale, torch.Tensor) and k_scale.dim() == 2 and k_scale.shape[1] == 1:
        k_scale = k_scale[:, 0]
    check_flat(q, k, k_scale, weights, cu_seq_len_k_start, cu_seq_len_k_end, out, max_seqlen_k)
    check_depth(q)
    if max_seqlen_k > 0 and clean_logits:
        raise ValueError(
            f"clean_logits: expected False with max_seqlen_k = {max_seqlen_k}, got True"
        )
    if index_checks_enabled():
        check_ranges(cu_seq_len_k_start, cu_seq_len_k_end, k.shape[0], max_seqlen_k)
    shape = (q.shape[0], max_seqlen_k if max_seqlen_k > 0 else k.shape[0])
    operands = (q, k, k_scale, weights, cu_seq_len_k_start, cu_seq_len_k_end)
    options = (
        library.tag(q.dtype),
        library.tag(k.dtype),
        max_seqlen_k > 0,
        clean_logits,
        float(clean_value),
        library.threads(num_mp, q),
        library.stream(q),
    )
    return _run("mqa_logits", _logits, operands, out, shape, options)

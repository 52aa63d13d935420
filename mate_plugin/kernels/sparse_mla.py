"""Attention of absorbed MLA over selected rows of a paged latent cache.

    s[h, i] = scale * q[t, h] . kv[i]
    out[t, h] = sum_i softmax(s[h])[i] * kv[i][:value_dim]

in float32 for the selections i of token t. All heads read the same rows, whose leading part also
is the value (DeepSeek-V2 technical report, multi-head latent attention with absorbed projections;
DeepSeek-V3.2-Exp technical report, sparse attention). Scores and values of a run of rows are
folded into a running softmax (Milakov and Gimelshein, "Online normalizer calculation for softmax").
"""

from __future__ import annotations

import math
from typing import Any

import torch

from mate_plugin.kernels import library
from mate_plugin.kernels.checks import contract, describe, index_checks_enabled, integer
from mate_plugin.kernels.contract_errors import ceil_div

_sparse_mla = library.define(
    "sparse_mla",
    "(Tensor q, Tensor kv_cache, Tensor? indices, Tensor? lengths, Tensor block_table,"
    " Tensor request_of_token, Tensor(a!) out, float scale, int q_tag, int kv_tag, int out_tag,"
    " int num_threads, int stream) -> ()",
)

# Keyed by whether selections are listed.
_CHECK = {
    listed: contract(
        "sparse_mla",
        "q: bf16|fp16 [T, H, D] rows",
        "kv_cache: bf16|fp16 [BLOCKS, BLOCK, D] rows",
        selections,
        "block_table: i32 [B, W] rows",
        "request_of_token: i32 [T]",
        "out: bf16|fp16|f32 [T, H, V] out optional",
        where={"V": "value_dim"},
    )
    for listed, selections in ((True, "indices: i32 [T, K] rows"), (False, "lengths: i32 [T]"))
}

WIDTH_UNIT = 16


def sparse_mla(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    indices: torch.Tensor | None,
    block_table: torch.Tensor,
    request_of_token: torch.Tensor,
    value_dim: int,
    scale: float,
    *,
    lengths: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    num_mp: int | None = None,
) -> torch.Tensor:
    """Attend each token's heads to its selected rows, or to a prefix of its request.

    The result of a token depends on nothing but its own query, selections and rows: it has the
    same bits alone, in any batch, and for any number of threads. Trailing -1 change nothing.

    Args:
        q: bfloat16 or float16 (T, H, D), any H, D a multiple of 16 and contiguous.
        kv_cache: bfloat16 or float16 (num_blocks, block, D), any block >= 1, D contiguous.
        indices: int32 (T, K), any row stride: positions within the token's request, in any order,
            -1 for none anywhere. A position given twice counts twice. None with ``lengths``.
        block_table: int32 (B, W), any row stride: position i of request r is row ``i % block`` of
            block ``block_table[r, i // block]``.
        request_of_token: int32 (T,), the row of ``block_table`` of each token; -1 for padding.
        value_dim: leading columns of a row that are its value, a multiple of 16 up to D.
        scale: factor of the scores.
        lengths: int32 (T,), instead of ``indices``: token t attends to positions
            ``0 .. lengths[t] - 1``, as if they were listed. 0 and below is none.
        out: bfloat16, float16 or float32 (T, H, value_dim), value_dim contiguous; every row is
            written. None allocates it with the dtype of ``q``.
        num_mp: at most so many threads; None takes all.

    Returns:
        ``out``, rounded once from float32. Padding and tokens that select nothing give zeros, as do
        heads whose scores are all -inf. A NaN in a selected row makes its tokens NaN, one in a
        query its head; a score of +inf makes its head NaN, as the softmax of torch does. Without
        index checks, positions past the table and blocks that do not exist count as -1, requests
        that do not exist as padding.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong shape, layout or value; with index checks (``MATE_PLUGIN_CHECK=1``) also
            requests, positions, lengths and blocks that cannot be. Nothing is written.
        NotImplementedError: there are no kernels for the device.
    """
    integer("value_dim", value_dim, WIDTH_UNIT, optional=False)
    integer("num_mp", num_mp, 1)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"scale: expected a number, got {describe(scale)}")
    if not abs(scale) < math.inf:
        raise ValueError(f"scale: expected a finite number, got {scale}")
    if (indices is None) == (lengths is None):
        given = "neither" if indices is None else "both"
        raise ValueError(f"indices: expected either indices or lengths, got {given}")
    selections = indices if lengths is None else lengths
    _CHECK[lengths is None](q, kv_cache, selections, block_table, request_of_token, out, value_dim)
    depth, block = q.shape[2], kv_cache.shape[1]
    if depth == 0 or depth % WIDTH_UNIT:
        raise ValueError(f"q: expected D to be a multiple of {WIDTH_UNIT}, got D = {depth}")
    if value_dim % WIDTH_UNIT or value_dim > depth:
        raise ValueError(
            f"value_dim: expected a multiple of {WIDTH_UNIT} up to D = {depth}, got {value_dim}"
        )
    if block == 0:
        raise ValueError("kv_cache: expected blocks of at least one row, got a block size of 0")
    if index_checks_enabled():
        _check_contents(kv_cache, indices, lengths, block_table, request_of_token)
    if out is None:
        out = torch.empty((*q.shape[:2], value_dim), dtype=q.dtype, device=q.device)
    _sparse_mla(
        q,
        kv_cache,
        indices,
        lengths,
        block_table,
        request_of_token,
        out,
        float(scale),
        library.tag(q.dtype),
        library.tag(kv_cache.dtype),
        library.tag(out.dtype),
        library.threads(num_mp, q),
        library.stream(q),
    )
    return out


def _check_contents(
    kv_cache: torch.Tensor,
    indices: torch.Tensor | None,
    lengths: torch.Tensor | None,
    block_table: torch.Tensor,
    request_of_token: torch.Tensor,
) -> None:
    num_blocks, block, _ = kv_cache.shape
    requests, columns = block_table.shape
    tables: list[Any] = block_table.tolist()
    for token, request in enumerate(request_of_token.tolist()):
        if request < -1 or request >= requests:
            raise ValueError(
                f"request_of_token: expected -1 or a request in [0, {requests}),"
                f" got {request} at token {token}"
            )
        if request == -1:
            continue
        if indices is not None:
            name, used = "indices", sorted({i for i in indices[token].tolist() if i != -1})
            lowest, highest = (used[0], used[-1]) if used else (0, -1)
            wanted = f"-1 or positions in [0, {columns * block})"
        else:
            assert lengths is not None
            name, length = "lengths", int(lengths[token])
            lowest, highest = 0, length - 1
            wanted = f"at most {columns * block} tokens"
        if lowest < 0 or highest >= columns * block:
            got = lowest if lowest < 0 else highest + (name == "lengths")
            raise ValueError(
                f"{name}: expected {wanted}, as the block table of request {request} has columns"
                f" for, got {got} at token {token}"
            )
        entries = (
            range(ceil_div(highest + 1, block))
            if indices is None
            else sorted({i // block for i in used})
        )
        for column in entries:
            if not 0 <= tables[request][column] < num_blocks:
                raise ValueError(
                    f"block_table: expected blocks in [0, {num_blocks}), got"
                    f" {tables[request][column]} at column {column} of request {request}, which"
                    f" token {token} attends to"
                )

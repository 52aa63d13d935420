"""The lightning indexer's logits on a paged K cache by TileLang."""

from __future__ import annotations

import torch

from mate_plugin.kernels.checks import contract
from mate_plugin.kernels.tilelang import cache
from mate_plugin.kernels.tilelang.logits_program import BLOCK, Split, paged_mqa_logits

SPLIT = Split(tokens=1024, threads=128, stages=4)

_WIDEST = 256  # columns of one product of the tensor cores
_CHECKS = {
    dims: contract(
        "paged_mqa_logits",
        "q: e4m3 [B, NEXT_N, H, D] contiguous",
        f"fused_kv_cache: u8 [BLOCKS, {BLOCK}, 1, FUSED]",
        "weights: f32 [R, H] contiguous",
        f"context_lens: i32 {shape} contiguous",
        "block_table: i32 [B, MAX_BLOCKS] rows",
        "out: f32 [R, MAX_LEN] out",
        where={"R": "B * NEXT_N", "FUSED": "D + 4"},
    )
    for dims, shape in ((1, "[B]"), (2, "[B, NEXT_N]"))
}


def fp8_paged_mqa_logits(
    q: torch.Tensor,
    fused_kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    out: torch.Tensor,
    clean_logits: bool = False,
    split: Split = SPLIT,
) -> torch.Tensor:
    """``out[row, t] = k_scale[t] * sum_h weights[row, h] * relu(q[row, h] . k[t])``.

    Args:
        q: e4m3 (batch, next_n, heads, D) contiguous, next_n * heads a multiple of 8 of at most 256,
            D 32, 64 or 128.
        fused_kv_cache: uint8 (num_blocks, 64, 1, D + 4). A block holds 64 rows of e4m3 and then 64
            float32 scales; blocks may be apart, ``stride(0)`` is a multiple of 16.
        weights: float32 (batch * next_n, heads) contiguous.
        context_lens: int32 contiguous. (batch,): draft token j of request b sees tokens
            ``t <= context_lens[b] - next_n + j``; (batch, next_n): ``t < context_lens[b, j]``.
        block_table: int32 (batch, max_blocks), rows contiguous. Entries of visible tokens exist.
        out: float32 (batch * next_n, max_len), rows contiguous.
        clean_logits: write -inf where a token is not visible; else that is unspecified.
        split: what a block of threads takes.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError: an argument is not as described.
        NotImplementedError: the device or the installed TileLang is not served.
    """
    dims = 2 if isinstance(context_lens, torch.Tensor) and context_lens.dim() == 2 else 1
    _CHECKS[dims](q, fused_kv_cache, weights, context_lens, block_table, out)
    batch, next_n, heads, depth = q.shape
    columns = next_n * heads
    if depth not in (32, 64, 128):
        raise ValueError(f"q: expected D of 32, 64 or 128, got {depth}")
    if columns == 0 or columns % 8 or columns > _WIDEST:
        raise ValueError(
            f"q: expected next_n * heads to be a multiple of 8 of at most {_WIDEST}, got {columns}"
        )
    codes, scales = parts(fused_kv_cache)
    cache.require("paged_mqa_logits", q.device)
    if out.numel() == 0:
        return out
    stride = fused_kv_cache.stride(0)
    shape = (next_n, heads, depth, stride, dims, clean_logits, split)
    kernel = cache.compiled(paged_mqa_logits, q.device.type, *shape)
    rows = (q.view(batch * columns, depth), weights.view(batch, columns))
    kernel(rows[0], codes, scales, rows[1], context_lens, block_table, out)
    return out


def parts(fused_kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of a cache: e4m3 (num_blocks, 64, D) and float32 scales (num_blocks, 64)."""
    num_blocks, block, _, width = fused_kv_cache.shape
    stride = fused_kv_cache.stride()
    # A bulk copy steps by multiples of 16 bytes.
    if stride[1] != width or stride[-1] != 1 or stride[0] % 16:
        raise ValueError(
            "fused_kv_cache: expected contiguous blocks a multiple of 16 bytes apart,"
            f" got strides {stride}"
        )
    flat = fused_kv_cache.as_strided((num_blocks, block * width), (stride[0], 1))
    depth = width - 4
    codes = flat[:, : block * depth].view(torch.float8_e4m3fn)
    return codes.unflatten(1, (block, depth)), flat[:, block * depth :].view(torch.float32)

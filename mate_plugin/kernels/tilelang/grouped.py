"""Which grouped GEMMs are of a form that the TileLang program has, and what it is called with."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mate_plugin.kernels.forms import BLOCK, E4M3, discontiguous, odd, other_scales, too_large
from mate_plugin.kernels.tilelang.grouped_program import Tile

WIDE = Tile(rows=128, columns=128, threads=256, stages=4)
# Of few rows per expert time goes into reading B: more blocks to a processor, more reads in flight.
NARROW = Tile(rows=64, columns=64, threads=128, stages=5)

_MODES = ("per_token", "psum_expert")
_MOST_BLOCKS = 65535  # of rows: the second dimension of a grid

Shape = tuple[str, int, int, int, int, Tile]


class Launch(NamedTuple):
    """One call: arguments of ``grouped_program.grouped_gemm``, and tensors of what it makes."""

    shape: Shape
    tensors: tuple[torch.Tensor, ...]


def tile_for(rows: int) -> Tile:
    """What a block computes where an expert has about ``rows`` rows."""
    return NARROW if rows <= NARROW.rows else WIDE


def ragged_m_gemm(
    a: torch.Tensor,
    sa: torch.Tensor | None,
    b: torch.Tensor,
    sb: torch.Tensor | None,
    info: torch.Tensor,
    out: torch.Tensor,
    _a_tag: int,
    _b_tag: int,
    mode: int,
    gran_n: int,
    gran_k: int,
    align: int,
    _out_tag: int,
    num_mp: int,
    _stream: int,
) -> Launch | str | None:
    """The layouts of aligned rows; None for an empty result, or the reason why it has no form."""
    if out.numel() == 0:
        return None
    if mode >= len(_MODES):
        return "the rows are packed"
    if align % BLOCK:
        return f"alignment_m is {align}, expected a multiple of {BLOCK}"
    if num_mp:
        return "num_mp has no effect on it"
    if reason := _unfit(a, sa, b, sb, info, out, gran_n, gran_k):
        return reason
    assert sa is not None and sb is not None  # noqa: PT018
    # Half of what is padded to 128 belongs to nobody where experts have few rows.
    tile = tile_for(a.shape[0] // b.shape[0] // 2)
    if -(-a.shape[0] // tile.rows) > _MOST_BLOCKS:
        return "there are too many rows"
    # One group of rows in all.
    tensors = a.unsqueeze(0), sa.unsqueeze(0), b, sb, info, out.unsqueeze(0)
    return Launch((_MODES[mode], *b.shape, align, tile), tensors)


def masked_gemm(
    a: torch.Tensor,
    sa: torch.Tensor | None,
    b: torch.Tensor,
    sb: torch.Tensor | None,
    counts: torch.Tensor,
    out: torch.Tensor,
    signal: torch.Tensor | None,
    _a_tag: int,
    _b_tag: int,
    gran_n: int,
    gran_k: int,
    _out_tag: int,
    expect_tokens: int,
    *_: int,
) -> Launch | str | None:
    """A group of rows for each expert; as :func:`ragged_m_gemm`."""
    if out.numel() == 0:
        return None
    if signal is not None:
        return "the call wants an overlap signal"
    if reason := _unfit(a, sa, b, sb, counts, out, gran_n, gran_k):
        return reason
    assert sa is not None and sb is not None  # noqa: PT018
    tile = tile_for(expect_tokens or a.shape[1])
    if a.shape[0] * -(-a.shape[1] // tile.rows) > _MOST_BLOCKS:
        return "there are too many rows"
    return Launch(("masked", *b.shape, BLOCK, tile), (a, sa, b, sb, counts, out))


def _unfit(
    a: torch.Tensor,
    sa: torch.Tensor | None,
    b: torch.Tensor,
    sb: torch.Tensor | None,
    info: torch.Tensor,
    out: torch.Tensor,
    gran_n: int,
    gran_k: int,
) -> str:
    """Why operands that satisfy the contract are none of the program's; empty where they are."""
    if b.dim() > 3:
        return "the weights are packed"
    if (a.dtype, b.dtype) != (E4M3, E4M3):
        return f"the operands are {a.dtype} rows and {b.dtype} weights"
    if out.dtype != torch.bfloat16:
        return f"the result is {out.dtype}"
    if reason := other_scales(gran_n, gran_k):
        return reason
    experts, n, k = b.shape
    if not experts:
        return "there are no experts"
    if sa is None or sb is None:
        return "there are no scales"
    blocks = -(-k // BLOCK)
    if (*a.shape[:-1], blocks) != tuple(sa.shape):
        return f"the scale of a is of shape {tuple(sa.shape)}"
    if (experts, -(-n // BLOCK), blocks) != tuple(sb.shape):
        return f"the scale of b is of shape {tuple(sb.shape)}"
    return (
        # Bulk copies want rows that start at multiples of 16 bytes.
        odd(16, K=k)
        or odd(8, N=n)
        or discontiguous(a=a, b=b, info=info, out=out, **{"scale of b": sb})
        or too_large(a, b, out)
        or unaligned(a=a, b=b, out=out)
    )


def unaligned(**tensors: torch.Tensor) -> str:
    """Which of the tensors does not start where bulk copies can."""
    for name, tensor in tensors.items():
        if tensor.data_ptr() % 16:
            return f"{name} does not start at a multiple of 16 bytes"
    return ""

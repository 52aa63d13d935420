"""FP8 grouped GEMMs by TileLang: the forms that MoE layers call most."""

from __future__ import annotations

import torch

from mate_plugin.kernels.checks import choice, contract, integer
from mate_plugin.kernels.tilelang import cache
from mate_plugin.kernels.tilelang.grouped_program import BLOCK, Tile, grouped_gemm

Operand = tuple[torch.Tensor, torch.Tensor]

WIDE = Tile(rows=128, columns=128, threads=256, stages=4)
# Of few rows per expert time goes into reading B: more blocks to a processor, more reads in flight.
NARROW = Tile(rows=64, columns=64, threads=128, stages=5)

_MODES: dict[str | None, str] = {"per_token": "per_token", "psum_expert": "psum_expert"}
_WHERE = {"KB": "ceil_div(K, 128)", "NB": "ceil_div(N, 128)"}
_B = ("input_b[0]: e4m3 [E, N, K] contiguous", "input_b[1]: f32 [E, NB, KB] contiguous")
_check_ragged_m = contract(
    "ragged_m_gemm",
    "input_a[0]: e4m3 [T, K] contiguous",
    "input_a[1]: f32 [T, KB] major",
    *_B,
    "ragged_tokens_info: i32 [R] contiguous",
    "out: bf16 [T, N] out",
    where=_WHERE | {"R": "E if by_expert else T"},
)
_check_masked = contract(
    "masked_gemm",
    "input_a[0]: e4m3 [E, M, K] contiguous",
    "input_a[1]: f32 [E, M, KB] major",
    *_B,
    "masked_tokens_info: i32 [E] contiguous",
    "out: bf16 [E, M, N] out",
    where=_WHERE,
)


def ragged_m_gemm(
    input_a: Operand,
    input_b: Operand,
    ragged_tokens_info: torch.Tensor,
    out: torch.Tensor,
    gemm_mode: str = "per_token",
    alignment_m: int = 128,
    tile: Tile | None = None,
) -> torch.Tensor:
    """``out[r] = A[r] @ B[expert of r].T`` for rows that belong to an expert; others stay.

    Args:
        input_a: e4m3 (T, K) contiguous, K a multiple of 16; float32 scales (T, ceil(K/128)) with
            either dimension contiguous.
        input_b: e4m3 (E, N, K) contiguous, N a multiple of 8; float32 scales
            (E, ceil(N/128), ceil(K/128)) contiguous.
        ragged_tokens_info: int32 contiguous. "per_token": (T,), the expert of each row or -1.
            "psum_expert": (E,), running ends of the experts' rows. Rows of an expert are
            contiguous and start at a multiple of ``alignment_m``.
        out: bfloat16 (T, N) contiguous.
        gemm_mode: "per_token" or "psum_expert".
        alignment_m: a multiple of 128.
        tile: what a block of threads computes; chosen by the number of rows unless given.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError: an argument is not as described.
        NotImplementedError: the device or the installed TileLang is not served.
    """
    layout = choice("gemm_mode", gemm_mode, _MODES)
    integer("alignment_m", alignment_m, 128, optional=False)
    if alignment_m % 128:
        raise ValueError(f"alignment_m: expected a multiple of 128, got {alignment_m}")
    (a, sa), (b, sb) = input_a, input_b
    _check_ragged_m(a, sa, b, sb, ragged_tokens_info, out, layout == "psum_expert")
    few = a.shape[0] <= 128 * b.shape[0]
    _launch(
        layout,
        (a.unsqueeze(0), sa.unsqueeze(0)),
        input_b,
        ragged_tokens_info,
        out.unsqueeze(0),
        alignment_m,
        tile or (NARROW if few else WIDE),
    )
    return out


def masked_gemm(
    input_a: Operand,
    input_b: Operand,
    masked_tokens_info: torch.Tensor,
    out: torch.Tensor,
    expect_tokens: int | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """``out[e, r] = A[e, r] @ B[e].T`` for rows r below ``masked_tokens_info[e]``; others stay.

    Args:
        input_a: e4m3 (E, M, K) contiguous, K a multiple of 16; float32 scales
            (E, M, ceil(K/128)) with either of the last two dimensions contiguous.
        input_b: e4m3 (E, N, K) contiguous, N a multiple of 8; float32 scales
            (E, ceil(N/128), ceil(K/128)) contiguous.
        masked_tokens_info: int32 (E,) contiguous, rows of each expert.
        out: bfloat16 (E, M, N) contiguous.
        expect_tokens: rows of an expert, about; M unless given.
        tile: what a block of threads computes; chosen by ``expect_tokens`` unless given.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError: an argument is not as described.
        NotImplementedError: the device or the installed TileLang is not served.
    """
    integer("expect_tokens", expect_tokens, 0)
    (a, sa), (b, sb) = input_a, input_b
    _check_masked(a, sa, b, sb, masked_tokens_info, out)
    few = (expect_tokens or a.shape[1]) <= NARROW.rows
    tile = tile or (NARROW if few else WIDE)
    _launch("masked", input_a, input_b, masked_tokens_info, out, BLOCK, tile)
    return out


def _launch(
    layout: str,
    input_a: Operand,
    input_b: Operand,
    info: torch.Tensor,
    out: torch.Tensor,
    alignment: int,
    tile: Tile,
) -> None:
    """Run on arguments (groups, rows, ...) that satisfy their contract but for sizes."""
    (a, sa), (b, sb) = input_a, input_b
    experts, n, k = b.shape
    for name, size, unit in (("K", k, 16), ("N", n, 8)):
        # Bulk copies want rows that start at multiples of 16 bytes.
        if size == 0 or size % unit:
            raise ValueError(f"input_b[0]: expected {name} to be a multiple of {unit}, got {size}")
    if not out.is_contiguous():
        raise ValueError(f"out: expected a contiguous tensor, got strides {out.stride()}")
    cache.require("masked_gemm" if layout == "masked" else "ragged_m_gemm", a.device)
    if out.numel() == 0:
        return
    shape = (layout, experts, n, k, alignment, tile)
    cache.compiled(grouped_gemm, a.device.type, *shape)(a, sa, b, sb, info, out)

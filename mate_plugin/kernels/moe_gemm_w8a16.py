"""Grouped GEMMs of FP8 weights and unquantised activations: no activation is rounded."""

from __future__ import annotations

from typing import Literal

import torch

from mate_plugin.kernels import masked, ragged_m
from mate_plugin.kernels.checks import GEMM_MODES, choice, granularity, integer, pair
from mate_plugin.kernels.packing import as_rows

_NAMES = ("input_a", "input_b[0]")
_RAGGED_M = ragged_m.contracts("bf16|fp16|f32", "fp8", "bf16|fp16|f32", "b", _NAMES)
_MASKED = masked.contracts("bf16|fp16|f32", "fp8", "bf16|fp16|f32", "b", _NAMES)


def ragged_m_moe_gemm_w8a16(
    input_a: torch.Tensor,
    input_b: tuple[torch.Tensor, torch.Tensor],
    ragged_tokens_info: torch.Tensor,
    out: torch.Tensor,
    gemm_mode: Literal["per_token", "psum_expert", "per_expert"] | None = "per_token",
    major_a_mode: Literal["M", "K"] | None = "K",
    major_b_mode: Literal["N", "K"] | None = "K",
    scale_granularity_mnk: tuple[int, int, int] | None = None,
    num_mp: int | None = None,
    alignment_m: int | None = None,
) -> torch.Tensor:
    """Multiply the rows of each expert with that expert's FP8 weights.

    Args:
        input_a: bfloat16, float16 or float32 (T, K), without scales.
        input_b: ``(B, SB)`` as in ``ragged_m_moe_gemm_8bit``.
        out: bfloat16, float16 or float32 (T, N), N contiguous.
        scale_granularity_mnk: as in ``ragged_m_moe_gemm_8bit``; its part of rows has no meaning.
        ragged_tokens_info, gemm_mode, major_a_mode, major_b_mode, num_mp, alignment_m: as there.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError, NotImplementedError: as ``ragged_m_moe_gemm_8bit``.
    """
    b, sb = pair("input_b", input_b)
    mode = choice("gemm_mode", gemm_mode, GEMM_MODES)
    a_is_m = choice("major_a_mode", major_a_mode, ragged_m.A_MAJORS)
    b_is_n = choice("major_b_mode", major_b_mode, ragged_m.B_MAJORS)
    grain = granularity(scale_granularity_mnk, ragged_m.GRANULARITIES, ragged_m.BLOCK_SCALES)
    integer("num_mp", num_mp, 1)
    align = ragged_m.alignment(alignment_m)
    check = _RAGGED_M[a_is_m, b_is_n, ragged_m.scale_kind(sb, grain[2])]
    check(input_a, as_rows(b), sb, ragged_tokens_info, out, mode, grain[1], grain[0])
    return ragged_m.launch(
        input_a, None, b, sb, ragged_tokens_info, out, mode, b_is_n, grain, align, num_mp
    )


def masked_moe_gemm_w8a16(
    input_a: torch.Tensor,
    input_b: tuple[torch.Tensor, torch.Tensor],
    masked_tokens_info: torch.Tensor,
    out: torch.Tensor | None,
    scale_granularity_mnk: tuple[int, int, int] | None = None,
    expect_tokens: int | None = None,
    enable_overlap: bool = False,
    signal: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, int, int]:
    """Multiply the first ``masked_tokens_info[e]`` rows of each expert with its FP8 weights.

    Args:
        input_a: bfloat16, float16 or float32 (E, M, K), K contiguous, without scales.
        input_b: ``(B, SB)`` as in ``masked_moe_gemm_8bit``.
        out: bfloat16, float16 or float32 (E, M, N); None allocates the type of ``input_a``.
        masked_tokens_info, scale_granularity_mnk, expect_tokens, enable_overlap, signal: as there.

    Returns:
        ``out``, or ``(out, signal, block_m, threshold)`` with ``enable_overlap``.

    Raises:
        TypeError, ValueError, NotImplementedError: as ``masked_moe_gemm_8bit``.
    """
    b, sb = pair("input_b", input_b)
    grain = granularity(scale_granularity_mnk, ragged_m.GRANULARITIES, ragged_m.BLOCK_SCALES)
    masked.check_options(expect_tokens, enable_overlap, signal)
    check = _MASKED[ragged_m.scale_kind(sb, grain[2])]
    check(input_a, as_rows(b), sb, masked_tokens_info, out, signal, grain[1], grain[0])
    return masked.launch(
        input_a,
        None,
        b,
        sb,
        masked_tokens_info,
        out,
        input_a.dtype,
        grain,
        expect_tokens,
        enable_overlap,
        signal,
    )

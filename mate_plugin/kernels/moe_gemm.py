"""The published 8-bit grouped GEMMs for mixtures of experts.

Scaling follows the DeepSeek-V3 report (section 3.3): activations carry one float32 scale per row
and 128 columns, weights one per 128 x 128 block; ``x = fp8(x) * scale``, products accumulate in
float32. The layouts with running end offsets and with masks are those of DeepGEMM.
"""

from __future__ import annotations

from typing import Literal

import torch

from mate_plugin.kernels import masked, ragged_k, ragged_m
from mate_plugin.kernels.checks import GEMM_MODES, choice, granularity, integer, pair
from mate_plugin.kernels.packing import as_rows

_FP8_PAIRS = ("input_a[0]", "input_b[0]")
_RAGGED_M = ragged_m.contracts("fp8", "fp8", "bf16|fp16", "ab", _FP8_PAIRS)
_RAGGED_K = ragged_k.contract_of("fp8", *_FP8_PAIRS)
_MASKED = masked.contracts("fp8", "fp8", "bf16|fp16", "ab", _FP8_PAIRS)

Pair = tuple[torch.Tensor, torch.Tensor]
Triple = tuple[int, int, int]


def ragged_m_moe_gemm_8bit(
    input_a: Pair,
    input_b: Pair,
    ragged_tokens_info: torch.Tensor,
    out: torch.Tensor,
    gemm_mode: Literal["per_token", "psum_expert", "per_expert"] | None = "per_token",
    major_a_mode: Literal["M", "K"] | None = "K",
    major_b_mode: Literal["N", "K"] | None = "K",
    scale_granularity_mnk: Triple | None = None,
    num_mp: int | None = None,
    alignment_m: int | None = None,
) -> torch.Tensor:
    """Multiply the rows of each expert with that expert's weights: ``out[r] = A[r] @ B[e].T``.

    T rows, E experts, N outputs, K inputs; all sizes may be 0 and need not be multiples of 128.

    Args:
        input_a: ``(A, SA)``. A is FP8 (e4m3fn or e5m2) (T, K): K contiguous, or with
            ``major_a_mode="M"`` T contiguous (stored (K, T), passed as its transposed view). SA is
            float32 (T, ceil(K/gk)), either dimension contiguous.
        input_b: ``(B, SB)``. B is FP8 (E, N, K), SB float32 (E, ceil(N/gn), ceil(K/gk)); with
            ``major_b_mode="N"`` (E, K, N) and (E, ceil(K/gk), ceil(N/gn)). The last dimension of B
            is contiguous. A and B may be of different FP8 types.
        ragged_tokens_info: int32; says which rows belong to expert e.
            ``per_token``: (T,), the expert of each row or -1. GPUs want the rows of an expert
            together and starting at a multiple of ``alignment_m``; a CPU takes any order.
            ``psum_expert``: (E,), end offsets; ``[align_up(info[e-1], alignment_m), info[e])``.
            ``per_expert``: (E,), counts of rows that follow one another without padding.
        out: bfloat16 or float16 (T, N), N contiguous. Rows that belong to no expert stay as they
            are, and the same rows of A and SA are not read. (The vendor's kernels on ``musa``
            promise neither for rows between the experts.)
        gemm_mode: one of the three readings above; None is ``per_token``.
        scale_granularity_mnk: (gm, gn, gk), elements per scale, -1 for a whole dimension.
            (1, 128, 128) (None), (1, 1, 128), (1, -1, -1) (one scale per row and per expert), or
            (-1, -1, -1): SA has one element, SB one element or (E, 1, 1).
        num_mp: most processors to use (threads on a CPU); None takes all.
        alignment_m: 128 (None), 256, or 1 for packed rows.

    Returns:
        ``out``.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong shape, layout, device, mode or number, or ``out`` shares memory with
            another argument. With ``MATE_PLUGIN_CHECK=1`` also experts outside [-1, E), offsets
            that fall or pass T, counts that are negative or exceed T. Nothing is written.
        NotImplementedError: there are no kernels for the device.
    """
    a, sa = pair("input_a", input_a)
    b, sb = pair("input_b", input_b)
    mode = choice("gemm_mode", gemm_mode, GEMM_MODES)
    a_is_m = choice("major_a_mode", major_a_mode, ragged_m.A_MAJORS)
    b_is_n = choice("major_b_mode", major_b_mode, ragged_m.B_MAJORS)
    grain = granularity(scale_granularity_mnk, ragged_m.GRANULARITIES, ragged_m.BLOCK_SCALES)
    integer("num_mp", num_mp, 1)
    align = ragged_m.alignment(alignment_m)
    check = _RAGGED_M[a_is_m, b_is_n, ragged_m.scale_kind(sb, grain[2])]
    check(a, sa, as_rows(b), sb, ragged_tokens_info, out, mode, grain[1], grain[0])
    return ragged_m.launch(
        a, sa, b, sb, ragged_tokens_info, out, mode, b_is_n, grain, align, num_mp
    )


def masked_moe_gemm_8bit(
    input_a: Pair,
    input_b: Pair,
    masked_tokens_info: torch.Tensor,
    out: torch.Tensor | None,
    scale_granularity_mnk: Triple | None = None,
    expect_tokens: int | None = None,
    enable_overlap: bool = False,
    signal: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, int, int]:
    """Multiply the first ``masked_tokens_info[e]`` rows of each expert with its weights.

    E experts, room for M rows each, N outputs, K inputs.

    Args:
        input_a: ``(A, SA)``: FP8 (E, M, K), K contiguous, and float32 (E, M, ceil(K/gk)).
        input_b: ``(B, SB)``: FP8 (E, N, K), K contiguous, and float32 (E, ceil(N/gn), ceil(K/gk)).
        masked_tokens_info: int32 (E,), rows in use. Rows past them are neither read nor written
            (which the vendor's kernels on ``musa`` do not promise).
        out: bfloat16 or float16 (E, M, N), N contiguous; None allocates bfloat16.
        scale_granularity_mnk: as for :func:`ragged_m_moe_gemm_8bit`.
        expect_tokens: rows that the caller expects per expert; picks tile sizes on GPUs.
        enable_overlap: report progress through ``signal``, for a consumer that starts on finished
            rows while the rest is being computed.
        signal: int32 (E * ceil(M/64),), contiguous, zeroed by the caller; None allocates one.
            When rows ``[i * block_m, (i + 1) * block_m)`` of expert e are complete in memory,
            ``signal[e * ceil(M/block_m) + i]`` has risen by ``threshold`` (release ordering).
            Blocks past the mask stay as they are. Only with ``enable_overlap``.

    Returns:
        ``out``, or ``(out, signal, block_m, threshold)`` with ``enable_overlap``.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`ragged_m_moe_gemm_8bit`; with
            ``MATE_PLUGIN_CHECK=1`` also counts outside [0, M].
    """
    a, sa = pair("input_a", input_a)
    b, sb = pair("input_b", input_b)
    grain = granularity(scale_granularity_mnk, ragged_m.GRANULARITIES, ragged_m.BLOCK_SCALES)
    masked.check_options(expect_tokens, enable_overlap, signal)
    check = _MASKED[ragged_m.scale_kind(sb, grain[2])]
    check(a, sa, as_rows(b), sb, masked_tokens_info, out, signal, grain[1], grain[0])
    return masked.launch(
        a,
        sa,
        b,
        sb,
        masked_tokens_info,
        out,
        torch.bfloat16,
        grain,
        expect_tokens,
        enable_overlap,
        signal,
    )


def ragged_k_moe_gemm_8bit(
    input_a: Pair,
    input_b: Pair,
    ragged_tokens_info: torch.Tensor,
    out: torch.Tensor,
    gemm_mode: Literal["per_expert"] | None = "per_expert",
    major_a_mode: Literal["M", "K"] | None = "M",
    major_b_mode: Literal["N", "K"] | None = "N",
    scale_granularity_mnk: Triple | None = None,
    num_mp: int | None = None,
) -> torch.Tensor:
    """Add each expert's product over its own rows: ``out[e] += A_e.T @ B_e`` (weight gradients).

    T rows in all, E experts; expert e owns ``ragged_tokens_info[e]`` rows after those of e - 1.

    Args:
        input_a: ``(A, SA)``: FP8 (T, M), M contiguous, and float32 (S, M). Scale row s covers 128
            rows; the blocks start anew at each expert, so S is the sum of ``ceil(rows_e / 128)``.
        input_b: ``(B, SB)``: FP8 (T, N), N contiguous, and float32 (S, N).
        ragged_tokens_info: int32 (E,), counts. Rows past their sum are not read; an expert without
            rows leaves ``out[e]`` as it is.
        out: float32 (E, M, N), N contiguous, accumulated into.
        gemm_mode, major_a_mode, major_b_mode, scale_granularity_mnk: only ``"per_expert"``,
            ``"M"``, ``"N"`` and (1, 1, 128), which None takes as well.
        num_mp: most processors to use (threads on a CPU); None takes all.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`ragged_m_moe_gemm_8bit`; with
            ``MATE_PLUGIN_CHECK=1`` also counts that are negative, exceed T or need more scales.
    """
    a, sa = pair("input_a", input_a)
    b, sb = pair("input_b", input_b)
    ragged_k.check_options(gemm_mode, major_a_mode, major_b_mode, num_mp)
    granularity(scale_granularity_mnk, {(1, 1, 128): None}, (1, 1, 128))
    _RAGGED_K(a, sa, b, sb, ragged_tokens_info, out)
    return ragged_k.launch(a, sa, b, sb, ragged_tokens_info, out, num_mp)

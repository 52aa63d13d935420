"""Twins of the 8-bit grouped GEMMs for bfloat16 and float16 operands, which carry no scales."""

from __future__ import annotations

from typing import Literal

import torch

from mate_plugin.kernels import masked, ragged_k, ragged_m
from mate_plugin.kernels.checks import GEMM_MODES, choice, integer
from mate_plugin.kernels.packing import as_rows

# Both operands of one type: one contract each.
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
_RAGGED_M = {
    dtype: ragged_m.contracts(name, name, "bf16|fp16", "", ("input_a", "input_b"))
    for dtype, name in _TYPES.items()
}
_MASKED = {
    dtype: masked.contracts(name, name, "bf16|fp16", "", ("a", "b"))["none"]
    for dtype, name in _TYPES.items()
}
_RAGGED_K = {
    dtype: ragged_k.contract_of(name, "input_a", "input_b") for dtype, name in _TYPES.items()
}
_UNSCALED: ragged_m.Granularity = (0, 0, False)


def _dtype(name: str, a: torch.Tensor) -> torch.dtype:
    """The type that both operands must have."""
    if not isinstance(a, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(a).__name__}")
    if a.dtype not in _TYPES:
        raise TypeError(f"{name}: expected dtype torch.bfloat16 or torch.float16, got {a.dtype}")
    return a.dtype


def ragged_m_moe_gemm_16bit(
    input_a: torch.Tensor,
    input_b: torch.Tensor,
    ragged_tokens_info: torch.Tensor,
    out: torch.Tensor,
    gemm_mode: Literal["per_token", "psum_expert", "per_expert"] | None = "per_token",
    major_a_mode: Literal["M", "K"] | None = "K",
    major_b_mode: Literal["N", "K"] | None = "K",
    num_mp: int | None = None,
    alignment_m: int | None = None,
) -> torch.Tensor:
    """Multiply the rows of each expert with that expert's weights: ``out[r] = A[r] @ B[e].T``.

    Args:
        input_a: bfloat16 or float16 (T, K), layouts as in ``ragged_m_moe_gemm_8bit``.
        input_b: the same type, (E, N, K), or (E, K, N) with ``major_b_mode="N"``.
        ragged_tokens_info, gemm_mode, major_a_mode, major_b_mode, num_mp, alignment_m: as in
            ``ragged_m_moe_gemm_8bit``.
        out: bfloat16 or float16 (T, N), N contiguous. Rows of no expert stay as they are.

    Returns:
        ``out``. Products accumulate in float32.

    Raises:
        TypeError, ValueError, NotImplementedError: as ``ragged_m_moe_gemm_8bit``.
    """
    mode = choice("gemm_mode", gemm_mode, GEMM_MODES)
    a_is_m = choice("major_a_mode", major_a_mode, ragged_m.A_MAJORS)
    b_is_n = choice("major_b_mode", major_b_mode, ragged_m.B_MAJORS)
    integer("num_mp", num_mp, 1)
    align = ragged_m.alignment(alignment_m)
    check = _RAGGED_M[_dtype("input_a", input_a)][a_is_m, b_is_n, "none"]
    check(input_a, as_rows(input_b), ragged_tokens_info, out, mode)
    return ragged_m.launch(
        input_a,
        None,
        input_b,
        None,
        ragged_tokens_info,
        out,
        mode,
        b_is_n,
        _UNSCALED,
        align,
        num_mp,
    )


def masked_moe_gemm_16bit(
    a: torch.Tensor,
    b: torch.Tensor,
    masked_tokens_info: torch.Tensor,
    out: torch.Tensor | None,
    expect_tokens: int | None = None,
    enable_overlap: bool = False,
    signal: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, int, int]:
    """Multiply the first ``masked_tokens_info[e]`` rows of each expert with its weights.

    Args:
        a: bfloat16 or float16 (E, M, K), K contiguous.
        b: the same type, (E, N, K), K contiguous.
        out: bfloat16 or float16 (E, M, N), N contiguous; None allocates the type of ``a``.
        masked_tokens_info, expect_tokens, enable_overlap, signal: as in ``masked_moe_gemm_8bit``.

    Returns:
        ``out``, or ``(out, signal, block_m, threshold)`` with ``enable_overlap``.

    Raises:
        TypeError, ValueError, NotImplementedError: as ``masked_moe_gemm_8bit``.
    """
    masked.check_options(expect_tokens, enable_overlap, signal)
    _MASKED[_dtype("a", a)](a, as_rows(b), masked_tokens_info, out, signal)
    return masked.launch(
        a,
        None,
        b,
        None,
        masked_tokens_info,
        out,
        a.dtype,
        _UNSCALED,
        expect_tokens,
        enable_overlap,
        signal,
    )


def ragged_k_moe_gemm_16bit(
    input_a: torch.Tensor,
    input_b: torch.Tensor,
    ragged_tokens_info: torch.Tensor,
    out: torch.Tensor,
    gemm_mode: Literal["per_expert"] | None = "per_expert",
    major_a_mode: Literal["M", "K"] | None = "M",
    major_b_mode: Literal["N", "K"] | None = "N",
    num_mp: int | None = None,
) -> torch.Tensor:
    """Add each expert's product over its own rows: ``out[e] += A_e.T @ B_e``.

    Args:
        input_a: bfloat16 or float16 (T, M), M contiguous.
        input_b: the same type, (T, N), N contiguous.
        ragged_tokens_info, out, gemm_mode, major_a_mode, major_b_mode, num_mp: as in
            ``ragged_k_moe_gemm_8bit``.

    Returns:
        ``out``, float32.

    Raises:
        TypeError, ValueError, NotImplementedError: as ``ragged_k_moe_gemm_8bit``.
    """
    ragged_k.check_options(gemm_mode, major_a_mode, major_b_mode, num_mp)
    _RAGGED_K[_dtype("input_a", input_a)](input_a, input_b, ragged_tokens_info, out)
    return ragged_k.launch(input_a, None, input_b, None, ragged_tokens_info, out, num_mp)

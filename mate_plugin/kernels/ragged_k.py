"""Shared half of the ragged-K grouped GEMMs: the contract of each form, the one compiled call."""

from __future__ import annotations

from typing import Any

import torch

from mate_plugin.kernels import gemm_ops, library
from mate_plugin.kernels.checks import (
    check_counts,
    choice,
    contract,
    index_checks_enabled,
    integer,
)
from mate_plugin.kernels.ragged_m import Check

SCALE_ROWS = 128


def contract_of(types: str, name_a: str, name_b: str) -> Check:
    """The contract of one form; 8-bit operands come with scales."""
    scales = (["input_a[1]: f32 [S, M] major"], ["input_b[1]: f32 [S, N] major"])
    scales_a, scales_b = scales if types == "fp8" else ([], [])
    return contract(
        "ragged_k_gemm",
        f"{name_a}: {types} [T, M] rows",
        *scales_a,
        f"{name_b}: {types} [T, N] rows",
        *scales_b,
        "ragged_tokens_info: i32 [E]",
        "out: f32 [E, M, N] out",
    )


def check_options(gemm_mode: Any, major_a_mode: Any, major_b_mode: Any, num_mp: Any) -> None:
    """The options that all ragged-K GEMMs share."""
    choice("gemm_mode", gemm_mode, {"per_expert": None, None: None})
    choice("major_a_mode", major_a_mode, {"M": None, None: None})
    choice("major_b_mode", major_b_mode, {"N": None, None: None})
    integer("num_mp", num_mp, 1)


def launch(
    a: torch.Tensor,
    sa: torch.Tensor | None,
    b: torch.Tensor,
    sb: torch.Tensor | None,
    counts: torch.Tensor,
    out: torch.Tensor,
    num_mp: int | None,
    counts_name: str = "ragged_tokens_info",
) -> torch.Tensor:
    """Run on arguments that satisfy their contract."""
    if index_checks_enabled():
        check_counts(counts_name, counts, a.shape[0])
        if sa is not None:
            check_counts(counts_name, counts, sa.shape[0], block=SCALE_ROWS, what="scale rows")
    gemm_ops.ragged_k_gemm(
        a,
        sa,
        b,
        sb,
        counts,
        out,
        library.tag(a.dtype),
        library.tag(b.dtype),
        library.tag(out.dtype),
        library.threads(num_mp, a),
        library.stream(a),
    )
    return out

"""Shared half of the masked grouped GEMMs: the contract of each form, and the one compiled call."""

from __future__ import annotations

from typing import Any

import torch

from mate_plugin.kernels import gemm_ops, library
from mate_plugin.kernels.checks import (
    ceil_div,
    check_counts,
    contract,
    describe,
    index_checks_enabled,
    integer,
)
from mate_plugin.kernels.packing import as_rows
from mate_plugin.kernels.ragged_m import Check, Granularity

# Rows per entry of the overlap signal's buffer, and the block in which the CPU counts it.
SIGNAL_ROWS = 64
_CPU_BLOCK_M, _CPU_BLOCK_N = 128, 128


def contracts(
    a_types: str, b_types: str, out_types: str, scaled: str, names: tuple[str, str]
) -> dict[str, Check]:
    """The contracts of one form of masked GEMM by how B is scaled; see ``ragged_m.contracts``."""
    name_a, name_b = names
    scales_a = {"blocks": "[E, M, KB] major", "tensor": "one", "expert": "one"}
    scales_b = {"blocks": "[E, NB, KB] major", "tensor": "one", "expert": "[E, 1, 1]"}

    def build(kind: str) -> Check:
        lines = [f"{name_a}: {a_types} [E, M, K] rows"]
        if "a" in scaled:
            lines.append(f"input_a[1]: f32 {scales_a[kind]}")
        lines.append(f"{name_b}: {b_types} [E, N, K] rows")
        if "b" in scaled:
            lines.append(f"input_b[1]: f32 {scales_b[kind]}")
        lines += [
            "masked_tokens_info: i32 [E]",
            f"out: {out_types} [E, M, N] out optional",
            "signal: i32 [S] out optional",
        ]
        where = {"S": f"E * ceil_div(M, {SIGNAL_ROWS})"}
        if scaled:
            where |= {"KB": "ceil_div(K, gran_k)", "NB": "ceil_div(N, gran_n)"}
        return contract("masked_gemm", *lines, where=where)

    return {kind: build(kind) for kind in (("blocks", "tensor", "expert") if scaled else ("none",))}


def check_options(expect_tokens: Any, enable_overlap: Any, signal: Any) -> None:
    """The options that all masked GEMMs share."""
    integer("expect_tokens", expect_tokens, 0)
    if not isinstance(enable_overlap, bool):
        raise TypeError(f"enable_overlap: expected a bool, got {describe(enable_overlap)}")
    if signal is not None and not enable_overlap:
        raise ValueError(
            f"signal: expected None where enable_overlap is False, got {describe(signal)}"
        )


def launch(
    a: torch.Tensor,
    sa: torch.Tensor | None,
    b: torch.Tensor,
    sb: torch.Tensor | None,
    counts: torch.Tensor,
    out: torch.Tensor | None,
    out_dtype: torch.dtype,
    grain: Granularity,
    expect_tokens: int | None,
    enable_overlap: bool,
    signal: torch.Tensor | None,
    counts_name: str = "masked_tokens_info",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, int, int]:
    """Run on arguments that satisfy their contract; allocates what is missing."""
    gran_n, gran_k, _ = grain
    num_experts, rows, _ = a.shape
    if enable_overlap and not a.is_cpu and library.is_compiling():
        raise NotImplementedError(
            "enable_overlap: expected False while torch.compile traces for a GPU, where the blocks"
            " of the signal depend on the kernel that serves the call"
        )
    if index_checks_enabled():
        check_counts(counts_name, counts, rows, each=True)
    if out is None:
        out = torch.empty(
            (num_experts, rows, as_rows(b).shape[1]), dtype=out_dtype, device=a.device
        )
    if enable_overlap and signal is None:
        size = num_experts * ceil_div(rows, SIGNAL_ROWS)
        signal = torch.zeros(size, dtype=torch.int32, device=a.device)
    arguments = (
        a,
        sa,
        b,
        sb,
        counts,
        out,
        signal,
        library.tag(a.dtype),
        library.tag(b.dtype),
        gran_n,
        gran_k,
        library.tag(out.dtype),
        expect_tokens or 0,
        library.threads(None, a),
        library.stream(a),
    )
    gemm_ops.masked_gemm(*arguments)
    if not enable_overlap:
        return out
    assert signal is not None
    columns = as_rows(b).shape[1]
    if a.is_cpu:
        return out, signal, *host_signal_units(columns)
    block_m, block_n = _signal_units(*arguments)
    return out, signal, int(block_m), ceil_div(columns, int(block_n))


# (rows, columns) of the blocks in which a masked GEMM of the same arguments counts its signal.
_signal_units = library.entry("masked_signal_units")


def host_signal_units(columns: int) -> tuple[int, int]:
    """``(block_m, threshold)`` of an overlap signal on a CPU: the rows of a block, and by how much
    its entry rises until all of them have their ``columns`` columns."""
    return _CPU_BLOCK_M, ceil_div(columns, _CPU_BLOCK_N)

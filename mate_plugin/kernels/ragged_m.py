"""Shared half of the ragged-M grouped GEMMs: the contract of each form, the one compiled call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mate_plugin.kernels import gemm_ops, library
from mate_plugin.kernels.checks import (
    check_counts,
    check_ends,
    check_expert_ids,
    contract,
    describe,
    index_checks_enabled,
    integer,
)

# (block of n, block of k, one scale per tensor) per granularity; 0 is the whole dimension.
Granularity = tuple[int, int, bool]
GRANULARITIES: dict[tuple[int, int, int], Granularity] = {
    (1, 128, 128): (128, 128, False),
    (1, 1, 128): (1, 128, False),
    (1, -1, -1): (0, 0, False),
    (-1, -1, -1): (0, 0, True),
}
BLOCK_SCALES = (1, 128, 128)

# True where the operand is transposed against the usual (rows, K) order.
A_MAJORS: dict[str | None, bool] = {None: False, "K": False, "M": True}
B_MAJORS: dict[str | None, bool] = {None: False, "K": False, "N": True}

ALIGNMENTS = (1, 128, 256)

Check = Callable[..., None]
# Keys: A is M-major, B is N-major, how B is scaled.
Checks = dict[tuple[bool, bool, str], Check]


def contracts(
    a_types: str, b_types: str, out_types: str, scaled: str, names: tuple[str, str]
) -> Checks:
    """The contracts of one form of ragged-M GEMM.

    ``scaled`` says which operands come with scales ("ab", "b" or ""), ``names`` what A and B are
    called in messages.
    """
    name_a, name_b = names
    scales_a = {"blocks": "[T, KB] major", "tensor": "one", "expert": "one"}
    scales_b = {
        (False, "blocks"): "[E, NB, KB] major",
        (True, "blocks"): "[E, KB, NB] major",
        (False, "tensor"): "one",
        (True, "tensor"): "one",
        (False, "expert"): "[E, 1, 1]",
        (True, "expert"): "[E, 1, 1]",
    }

    def build(a_is_m: bool, b_is_n: bool, kind: str) -> Check:
        lines = [f"{name_a}: {a_types} [T, K] {'cols' if a_is_m else 'rows'}"]
        if "a" in scaled:
            lines.append(f"input_a[1]: f32 {scales_a[kind]}")
        lines.append(f"{name_b}: {b_types} {'[E, K, N]' if b_is_n else '[E, N, K]'} rows")
        if "b" in scaled:
            lines.append(f"input_b[1]: f32 {scales_b[b_is_n, kind]}")
        lines += ["ragged_tokens_info: i32 [R]", f"out: {out_types} [T, N] out"]
        where = {"R": "E if by_expert else T"}
        if scaled:
            where |= {"KB": "ceil_div(K, gran_k)", "NB": "ceil_div(N, gran_n)"}
        return contract("ragged_m_gemm", *lines, where=where)

    kinds = ("blocks", "tensor", "expert") if scaled else ("none",)
    return {(m, n, k): build(m, n, k) for m in (False, True) for n in (False, True) for k in kinds}


def scale_kind(scale: Any, per_tensor: bool) -> str:
    """Which contract a scale of B claims to follow."""
    if not per_tensor:
        return "blocks"
    return "expert" if isinstance(scale, torch.Tensor) and scale.dim() == 3 else "tensor"


def alignment(value: Any) -> int:
    """The row alignment; None is 128."""
    if value is None:
        return 128
    integer("alignment_m", value, 1)
    if value not in ALIGNMENTS:
        raise ValueError(f"alignment_m: expected one of {ALIGNMENTS}, got {describe(value)}")
    return int(value)


def check_info(name: str, mode: int, info: torch.Tensor, num_rows: int, num_experts: int) -> None:
    """Contents of the tensor that assigns rows to experts; reads it."""
    if mode == 0:
        check_expert_ids(name, info, num_experts)
    elif mode == 1:
        check_ends(name, info, num_rows)
    else:
        check_counts(name, info, num_rows)


def launch(
    a: torch.Tensor,
    sa: torch.Tensor | None,
    b: torch.Tensor,
    sb: torch.Tensor | None,
    info: torch.Tensor,
    out: torch.Tensor,
    mode: int,
    b_is_n: bool,
    grain: Granularity,
    align: int,
    num_mp: int | None,
    info_name: str = "ragged_tokens_info",
) -> torch.Tensor:
    """Run on arguments that satisfy their contract."""
    gran_n, gran_k, per_tensor = grain
    if index_checks_enabled():
        check_info(info_name, mode, info, a.shape[0], b.shape[0])
    if b_is_n:
        if b.dim() > 3:
            raise ValueError("major_b_mode: expected K beside packed weights, got N")
        b = b.transpose(1, 2)
        sb = sb if sb is None or per_tensor else sb.transpose(1, 2)
    gemm_ops.ragged_m_gemm(
        a,
        sa,
        b,
        sb,
        info,
        out,
        library.tag(a.dtype),
        library.tag(b.dtype),
        mode,
        gran_n,
        gran_k,
        align,
        library.tag(out.dtype),
        library.threads(num_mp, a),
        library.stream(a),
    )
    return out

"""The grouped GEMMs."""

from __future__ import annotations

from typing import Any

import torch

from mate_plugin.kernels.forms import (
    BLOCK,
    FP8,
    HALF,
    NOTHING,
    Call,
    Form,
    discontiguous,
    odd,
    other_scales,
    too_large,
)
from mate_plugin.kernels.vendor.package import Vendor

# Before it the layouts that name an expert do not look at num_mp.
_HONOURS_NUM_MP = (0, 2, 6)


def _bits(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, bits16_out: bool) -> int | str:
    """8 or 16 for operands that the grouped GEMMs take. ``bits16_out``: 16-bit operands want a
    result of their own type."""
    pair = f"{a.dtype} rows and {b.dtype} weights"
    if b.dim() > 3:
        return "the weights are packed"
    if a.dtype in FP8 and b.dtype in FP8:
        good = out.dtype in HALF or not bits16_out
        return 8 if good else f"the result is {out.dtype}"
    if a.dtype not in HALF or a.dtype != b.dtype:
        return f"the operands are {pair}"
    if bits16_out and out.dtype != a.dtype:
        return f"the result is {out.dtype} of {a.dtype} operands"
    return 16


def ragged_m_gemm(
    vendor: Vendor,
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
) -> Form:
    """The three layouts of rows.

    Running ends become the expert of each row: release 0.2.2 raises for them, and what later ones
    take between two experts is not documented.
    """
    if out.numel() == 0:
        return NOTHING
    bits = _bits(a, b, out, True)
    if isinstance(bits, str):
        return bits
    if b.shape[0] == 0:
        return "there are no experts"
    by_count = mode == 2
    n_major = by_count and not b.is_contiguous()
    if n_major:
        # The op takes logical (E, N, K); the published form is what is in memory.
        b, sb = b.transpose(1, 2), None if sb is None else sb.transpose(1, 2)
    if reason := (
        (other_scales(gran_n, gran_k) if bits == 8 else "")
        or odd(BLOCK, N=out.shape[1], K=a.shape[1])
        or discontiguous(a=a, b=b, ragged_tokens_info=info, out=out)
        or discontiguous(**{"scale of a": sa, "scale of b": sb})
        or (too_large(a, out) if by_count else "")
    ):
        return reason
    if not by_count:
        if align not in (128, 256):
            return f"alignment_m is {align}, expected 128 or 256"
        if a.shape[0] % align:
            return f"the number of rows is no multiple of alignment_m = {align}"
        if num_mp and not vendor.since(*_HONOURS_NUM_MP):
            return "num_mp has no effect on it before 0.2.6"
        if mode == 1:
            info = expert_of_row(info, a.shape[0], align)
    arguments: dict[str, Any] = {
        "input_a": a if sa is None else (a, sa),
        "input_b": b if sb is None else (b, sb),
        "ragged_tokens_info": info,
        "out": out,
        "gemm_mode": "per_expert" if by_count else "per_token",
        "major_b_mode": "N" if n_major else "K",
        "num_mp": num_mp or None,
    }
    if not by_count:
        arguments["alignment_m"] = align
    if bits == 8:
        arguments["scale_granularity_mnk"] = (1, BLOCK, BLOCK)
    return Call(f"ragged_m_moe_gemm_{bits}bit", arguments)


def expert_of_row(ends: torch.Tensor, rows: int, align: int) -> torch.Tensor:
    """int32 (rows,): the expert of each row, -1 for padding, from running ends; on the device."""
    starts = torch.cat([ends.new_zeros(1), -(-ends[:-1] // align) * align])
    row = torch.arange(rows, dtype=torch.int32, device=ends.device)
    expert = (row[:, None] >= ends).sum(dim=1)
    inside = expert < ends.shape[0]
    inside &= row >= starts[expert.clamp_max(ends.shape[0] - 1)]
    return torch.where(inside, expert, -1).to(torch.int32)


def masked_gemm(
    _vendor: Vendor,
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
) -> Form:
    """With a signal, the call's result says in which blocks it is counted."""
    if out.numel() == 0:
        return NOTHING
    bits = _bits(a, b, out, True)
    if isinstance(bits, str):
        return bits
    # Scales of the rows may lie either way.
    sa_laid = sa if sa is None or sa.is_contiguous() else sa.transpose(1, 2)
    if reason := (
        (other_scales(gran_n, gran_k) if bits == 8 else "")
        or odd(BLOCK, N=out.shape[2], K=a.shape[2])
        or discontiguous(a=a, b=b, masked_tokens_info=counts, out=out, signal=signal)
        or discontiguous(**{"scale of a": sa_laid, "scale of b": sb})
    ):
        return reason
    arguments: dict[str, Any] = {
        "masked_tokens_info": counts,
        "out": out,
        "expect_tokens": expect_tokens,
        "enable_overlap": signal is not None,
        "signal": signal,
    }
    if bits == 8:
        arguments |= {
            "input_a": (a, sa),
            "input_b": (b, sb),
            "scale_granularity_mnk": (1, BLOCK, BLOCK),
        }
    else:
        arguments |= {"a": a, "b": b}
    return Call(f"masked_moe_gemm_{bits}bit", arguments)


def ragged_k_gemm(
    _vendor: Vendor,
    a: torch.Tensor,
    sa: torch.Tensor | None,
    b: torch.Tensor,
    sb: torch.Tensor | None,
    counts: torch.Tensor,
    out: torch.Tensor,
    _a_tag: int,
    _b_tag: int,
    _out_tag: int,
    num_mp: int,
    _stream: int,
) -> Form:
    """``out`` is added to, so no rows at all leave it as it is."""
    if out.numel() == 0 or a.shape[0] == 0:
        return NOTHING
    bits = _bits(a, b, out, False)
    if isinstance(bits, str):
        return bits
    if reason := (
        odd(BLOCK, M=a.shape[1], N=b.shape[1])
        or discontiguous(a=a, b=b, ragged_tokens_info=counts, out=out)
        or discontiguous(**{"scale of a": sa, "scale of b": sb})
        or too_large(a, b, out[0])
    ):
        return reason
    arguments = {
        "input_a": a if sa is None else (a, sa),
        "input_b": b if sb is None else (b, sb),
        "ragged_tokens_info": counts,
        "out": out,
        "num_mp": num_mp or None,
    }
    return Call(f"ragged_k_moe_gemm_{bits}bit", arguments)

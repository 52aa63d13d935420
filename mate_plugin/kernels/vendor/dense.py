"""The dense GEMMs, which share one op."""

from __future__ import annotations

import torch

from mate_plugin.kernels.forms import (
    BLOCK,
    E4M3,
    E5M2,
    FP8,
    HALF,
    NOTHING,
    Call,
    Form,
    discontiguous,
    odd,
    too_large,
)
from mate_plugin.kernels.vendor.package import Vendor


def batched_gemm(
    _vendor: Vendor,
    a: torch.Tensor,
    sa: torch.Tensor | None,
    b: torch.Tensor,
    sb: torch.Tensor | None,
    out: torch.Tensor,
    c: torch.Tensor | None,
    divisor: torch.Tensor | None,
    out_scale: torch.Tensor | None,
    _a_tag: int,
    _b_tag: int,
    _c_tag: int,
    gran_n: int,
    gran_k: int,
    _out_tag: int,
    backend: str,
    *_: int,
) -> Form:
    """The three dense GEMMs share an op; ``b`` is (..., N, K)."""
    if out.numel() == 0:
        return NOTHING
    if c is not None:
        return "there is an addend c"
    if divisor is not None:
        return "the result is divided by output_scale"
    if b.dim() != a.dim():
        return "the weights are packed"
    library_of_it = "mubin" if out_scale is not None else "mudnn"
    if backend not in ("auto", library_of_it):
        return f"its kernels of this form are of the backend {library_of_it!r}, not {backend!r}"
    if a.dim() == 2:
        return _groupwise(a, sa, b, sb, out, out_scale, gran_n, gran_k, backend)
    if sa is not None and sb is not None:
        return _bmm_fp8(a, sa, b, sb, out, backend)
    return _bmm_fp16(a, b, out, backend)


def _groupwise(
    a: torch.Tensor,
    sa: torch.Tensor | None,
    b: torch.Tensor,
    sb: torch.Tensor | None,
    out: torch.Tensor,
    out_scale: torch.Tensor | None,
    gran_n: int,
    gran_k: int,
    backend: str,
) -> Form:
    if sa is None or sb is None or a.dtype not in FP8:
        return f"the operands are {a.dtype} rows and {b.dtype} weights"
    if (a.dtype, b.dtype) == (E4M3, E5M2):
        return "e4m3fn rows meet e5m2 weights"
    if out.dtype not in (HALF if out_scale is None else (E4M3,)):
        return f"the result is {out.dtype}"
    granularity = {(BLOCK, BLOCK): (1, BLOCK, BLOCK), (1, 0): (1, 1, -1), (0, 0): (1, -1, -1)}.get(
        (gran_n, gran_k)
    )
    if granularity is None:
        return f"weights have one scale per {gran_n} x {gran_k}"
    if gran_n == 0:
        if sa.shape != (a.shape[0], 1):
            return "there is one scale for all of a"
        sb = sb.reshape(())
    # Scales of both are transposed, or of neither; in a row of one element it makes no difference.
    major = "K" if sa.is_contiguous() and sb.is_contiguous() else "MN"
    if major == "MN":
        sa, sb = sa.t(), sb.t()
    if reason := (
        odd(BLOCK, K=a.shape[1])
        or odd(32, N=b.shape[0])
        or discontiguous(a=a, b=b, a_scale=sa, b_scale=sb, output_scale=out_scale)
    ):
        return reason
    if out_scale is not None:
        if granularity != (1, BLOCK, BLOCK) or major != "K":
            return "output_scale goes with K-major scales of 1 x 128 and 128 x 128 only"
        if reason := discontiguous(out=out) or too_large(a, b, out):
            return reason
    arguments = {
        "a": a,
        "b": b,
        "a_scale": sa,
        "b_scale": sb,
        "scale_major_mode": major,
        "mma_sm": 1,
        "scale_granularity_mnk": granularity,
        "out": out,
        "out_dtype": out.dtype,
        "backend": backend,
        "output_scale": out_scale,
    }
    return Call("gemm_fp8_nt_groupwise", arguments)


def _bmm_fp8(
    a: torch.Tensor,
    sa: torch.Tensor,
    b: torch.Tensor,
    sb: torch.Tensor,
    out: torch.Tensor,
    backend: str,
) -> Form:
    if out.dtype not in HALF:
        return f"the result is {out.dtype}"
    if sb.numel() != 1:
        return "each matrix of b has a scale of its own"
    per_row = sa.dim() == 3
    if reason := (
        odd(BLOCK, N=b.shape[1], K=b.shape[2])
        or discontiguous(a=a, a_scale=sa)
        or ("b: K is not contiguous" if b.stride(2) != 1 else "")
    ):
        return reason
    arguments = {
        "a": a,
        "b": b.transpose(1, 2),
        "a_scale": sa if per_row else sa.reshape(()),
        "b_scale": sb.reshape(()),
        "out_dtype": out.dtype,
        "out": out,
        "backend": backend,
        "scale_granularity_mnk": (1, -1, -1) if per_row else (-1, -1, -1),
    }
    return Call("bmm_fp8", arguments)


def _bmm_fp16(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, backend: str) -> Form:
    if a.dtype not in HALF or b.dtype != a.dtype:
        return f"the operands are {a.dtype} and {b.dtype}"
    if reason := (
        odd(BLOCK, N=b.shape[1], K=b.shape[2])
        or ("a: K is not contiguous" if a.stride(2) != 1 else "")
        or ("b: K is not contiguous" if b.stride(2) != 1 else "")
    ):
        return reason
    arguments = {
        "a": a,
        "b": b.transpose(1, 2),
        "out_dtype": out.dtype,
        "out": out,
        "backend": backend,
    }
    return Call("bmm_fp16", arguments)

"""The vendor's dense GEMMs."""

from __future__ import annotations

from typing import Literal

import torch
from torch_musa import launch
from vendor_calls import contiguous, expect, multiples, recorded

from mate_plugin.kernels.reference import gemm as oracle

Tensor = torch.Tensor
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
HALF = (torch.bfloat16, torch.float16)
BLOCK = 128
GROUPWISE_N = 32


def _backend(name: str, only: str) -> None:
    if name not in ("auto", only):
        raise ValueError(f"backend must be one of ['auto', {only!r}]")


def _scalar(name: str, scale: Tensor) -> None:
    expect(name, scale, torch.float32, ())


@recorded
def bmm_fp16(
    a: Tensor,
    b: Tensor,
    out_dtype: torch.dtype,
    out: Tensor | None = None,
    backend: str = "auto",
    c: Tensor | None = None,
) -> Tensor:
    _backend(backend, "mudnn")
    batch, m, k = a.shape
    n = b.shape[2]
    assert c is None, "c: not tested there"
    multiples(BLOCK, N=n, K=k)
    expect("a", a, HALF, (batch, m, k))
    expect("b", b.mT, a.dtype, (batch, n, k))
    assert out_dtype == out.dtype
    expect("out", out, (*HALF, torch.float32), (batch, m, n))

    def run() -> None:
        out.copy_(oracle.dense(a.cpu(), b.cpu().mT).to(out.dtype))

    launch(run)
    return out


@recorded
def bmm_fp8(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    out_dtype: torch.dtype,
    out: Tensor | None = None,
    backend: str = "auto",
    scale_granularity_mnk: tuple[int, int, int] | None = None,
    output_scale: Tensor | None = None,
) -> Tensor:
    _backend(backend, "mudnn")
    batch, m, k = a.shape
    n = b.shape[2]
    # Not looked at there.
    assert output_scale is None, "output_scale: has no effect"
    assert scale_granularity_mnk in (None, (-1, -1, -1), (1, -1, -1)), scale_granularity_mnk
    multiples(BLOCK, N=n, K=k)
    expect("a", a, FP8, (batch, m, k))
    expect("b", b.mT, FP8, (batch, n, k))
    assert out_dtype == out.dtype
    expect("out", out, HALF, (batch, m, n))
    per_row = scale_granularity_mnk == (1, -1, -1)
    if per_row:
        expect("a_scale", a_scale, torch.float32, (batch, m, 1))
    else:
        _scalar("a_scale", a_scale)
    _scalar("b_scale", b_scale)
    contiguous(a=a, a_scale=a_scale)

    def run() -> None:
        operands = (a.cpu(), a_scale.cpu()), (b.cpu().mT, b_scale.cpu())
        out.copy_(oracle.dense(*operands, (1 if per_row else -1, -1, -1)).to(out.dtype))

    launch(run)
    return out


@recorded
def gemm_fp8_nt_groupwise(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    scale_major_mode: Literal["MN", "K"] | None = None,
    mma_sm: int | None = None,
    scale_granularity_mnk: tuple[int, int, int] | None = None,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
    output_scale: Tensor | None = None,
) -> Tensor:
    _backend(backend, "mudnn" if output_scale is None else "mubin")
    (m, k), n = a.shape, b.shape[0]
    granularity = scale_granularity_mnk or (1, BLOCK, BLOCK)
    assert granularity in ((1, BLOCK, BLOCK), (1, 1, -1), (1, -1, -1)), granularity
    assert mma_sm in (None, 1), f"mma_sm: got {mma_sm}"
    assert out_dtype in (None, out.dtype)
    multiples(GROUPWISE_N, N=n)
    multiples(BLOCK, K=k)
    assert (a.dtype, b.dtype) != FP8, "untested types: e4m3fn rows and e5m2 weights"
    expect("a", a, FP8, (m, k))
    expect("b", b, FP8, (n, k))
    expect("out", out, HALF if output_scale is None else torch.float8_e4m3fn, (m, n))
    mn_major = scale_major_mode == "MN"
    columns = -(-k // granularity[2]) if granularity[2] > 0 else 1
    expect("a_scale", a_scale, torch.float32, (columns, m) if mn_major else (m, columns))
    if granularity[1] > 0:
        rows = -(-n // granularity[1])
        expect("b_scale", b_scale, torch.float32, (columns, rows) if mn_major else (rows, columns))
    else:
        _scalar("b_scale", b_scale)
    contiguous(a=a, b=b, a_scale=a_scale, b_scale=b_scale)
    if output_scale is not None:
        # Only the form of the default is compiled for this result, and scales are read K-major.
        assert granularity == (1, BLOCK, BLOCK)
        assert not mn_major
        expect("output_scale", output_scale, torch.float32, (m, -(-n // BLOCK)))
        contiguous(out=out, output_scale=output_scale)

    def run() -> None:
        sa, sb = a_scale.cpu(), b_scale.cpu()
        if mn_major:
            sa, sb = sa.t(), sb.t()
        product = oracle.dense((a.cpu(), sa), (b.cpu(), sb), granularity)
        if output_scale is not None:
            scales = oracle.block_scales(product).float()
            output_scale.copy_(scales)
            product = product / scales.double().repeat_interleave(BLOCK, 1)[:, :n]
        out.copy_(product.float().to(out.dtype))

    launch(run)
    return out

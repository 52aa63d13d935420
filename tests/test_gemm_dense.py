"""Dense GEMMs against the float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemm_cases import (
    BF16,
    E4M3,
    E5M2,
    F32,
    FP8,
    FP16,
    Maker,
    assert_close,
    assert_within,
    bits,
    cases,
    ceil_div,
    magnitude,
)
from hypothesis import given
from hypothesis import strategies as st

from mate_plugin.kernels import gemm
from mate_plugin.kernels.reference import gemm as reference

sizes = st.sampled_from([0, 1, 2, 5, 17, 64, 127, 128, 129, 200, 257])
rows = st.sampled_from([0, 1, 2, 3, 8, 33, 130])
seeds = st.integers(0, 2**31)
strides = st.booleans()


@cases
@given(
    seed=seeds,
    batch=st.integers(0, 3),
    m=rows,
    n=sizes,
    k=sizes,
    half=st.sampled_from([BF16, FP16]),
    out_dtype=st.sampled_from([BF16, FP16, F32]),
    c_dtype=st.sampled_from([None, BF16, FP16, F32, "out"]),
    given_out=st.booleans(),
    k_major=st.booleans(),
    strided=strides,
    backend=st.sampled_from(["auto", "mudnn", "mubin"]),
)
def test_bmm_fp16(
    seed: int,
    batch: int,
    m: int,
    n: int,
    k: int,
    half: torch.dtype,
    out_dtype: torch.dtype,
    c_dtype: Any,
    given_out: bool,
    k_major: bool,
    strided: bool,
    backend: str,
) -> None:
    make = Maker(seed, strided)
    a, b = make.normal(batch, m, k, dtype=half), make.normal(batch, k, n, dtype=half)
    if k_major:
        b = b.transpose(1, 2).contiguous().transpose(1, 2)
    out = make.out(batch, m, n, dtype=out_dtype) if given_out or c_dtype == "out" else None
    c = None
    if c_dtype == "out":
        assert out is not None
        c = out.copy_(make.normal(batch, m, n))
    elif c_dtype is not None:
        c = make.normal(batch, m, n, dtype=c_dtype)
    added = torch.zeros(batch, m, n).double() if c is None else c.double()
    result = gemm.bmm_fp16(a, b, out_dtype, out, backend, c)
    assert out is None or result is out
    assert result.dtype == out_dtype
    want = reference.dense(a, b.mT) + added
    size = reference.dense(magnitude(a), magnitude(b.mT)) + added.abs()
    assert_within(result, want, size, k + 1)


@cases
@given(
    seed=seeds,
    batch=st.integers(0, 3),
    m=rows,
    n=sizes,
    k=sizes,
    fp8=st.tuples(st.sampled_from(FP8), st.sampled_from(FP8)),
    grain=st.sampled_from([None, (-1, -1, -1), (1, -1, -1)]),
    per_batch=st.booleans(),
    out_dtype=st.sampled_from([BF16, FP16, E4M3]),
    divide=st.booleans(),
    strided=strides,
)
def test_bmm_fp8(
    seed: int,
    batch: int,
    m: int,
    n: int,
    k: int,
    fp8: Any,
    grain: Any,
    per_batch: bool,
    out_dtype: torch.dtype,
    divide: bool,
    strided: bool,
) -> None:
    make = Maker(seed, strided)
    a = make.normal(batch, m, k, dtype=fp8[0])
    b = make.normal(batch, n, k, dtype=fp8[1])
    rowwise = grain == (1, -1, -1)
    a_scale = make.scale(batch, m, 1) if rowwise else make.scale(1).reshape(())
    b_scale = make.scale(batch, 1, 1) if rowwise and per_batch else make.scale(1)
    # Large enough that e4m3 does not saturate.
    divisor = torch.tensor([3.7]) if divide or out_dtype == E4M3 else None
    result = gemm.bmm_fp8(
        a,
        b.transpose(1, 2),
        a_scale,
        b_scale,
        out_dtype,
        scale_granularity_mnk=grain,
        output_scale=divisor,
    )
    assert result.dtype == out_dtype
    by = 1.0 if divisor is None else float(divisor)
    grain = (0, 0, 0)
    want = reference.dense((a, a_scale), (b, b_scale), grain) / by
    size = reference.dense(magnitude((a, a_scale)), magnitude((b, b_scale)), grain) / by
    if out_dtype == E4M3:
        want = want.clamp(-reference.FP8_MAX, reference.FP8_MAX)
    assert_within(result, want, size, k)


def groupwise_operands(
    make: Maker, m: int, n: int, k: int, types: Any, grain: tuple[int, int, int]
) -> tuple[Any, Any]:
    gran_m, gran_n, gran_k = grain
    kb = ceil_div(k, gran_k)
    sa = make.scale(1) if gran_m == -1 else make.scale(m, kb)
    sb = make.scale(1) if gran_n == -1 else make.scale(ceil_div(n, gran_n), kb)
    a = make.normal(m, k, dtype=types[0])
    return (a, sa), (make.normal(n, k, dtype=types[1]), sb)


GROUPWISE = [(1, 128, 128), (1, 1, 128), (1, 1, -1), (1, -1, -1), (-1, -1, -1)]


@cases
@given(
    seed=seeds,
    m=rows,
    n=sizes,
    k=sizes,
    fp8=st.tuples(st.sampled_from(FP8), st.sampled_from(FP8)),
    grain=st.sampled_from(GROUPWISE),
    major=st.sampled_from([None, "K", "MN"]),
    out_dtype=st.sampled_from([None, BF16, FP16, E4M3]),
    given_out=st.booleans(),
    strided=strides,
)
def test_gemm_fp8_nt_groupwise(
    seed: int,
    m: int,
    n: int,
    k: int,
    fp8: Any,
    grain: tuple[int, int, int],
    major: Any,
    out_dtype: Any,
    given_out: bool,
    strided: bool,
) -> None:
    make = Maker(seed, strided)
    a, b = groupwise_operands(make, m, n, k, fp8, grain)
    scales = [s if s.dim() == 1 or major != "MN" else make.view(s.t()) for s in (a[1], b[1])]
    out = make.out(m, n, dtype=out_dtype or BF16) if given_out else None
    scale = make.out(m, ceil_div(n, 128), dtype=F32) if out_dtype == E4M3 else None
    result = gemm.gemm_fp8_nt_groupwise(
        a[0],
        b[0],
        *scales,
        scale_major_mode=major,
        scale_granularity_mnk=grain,
        out=out,
        out_dtype=out_dtype,
        output_scale=scale,
    )
    assert out is None or result is out
    assert result.dtype == (out_dtype or BF16)

    def product(x: Any, y: Any) -> torch.Tensor:
        return reference.dense(x, y, grain)

    if scale is None:
        assert_close(result, product, a, b, k)
    elif m and n:
        assert_scaled(result, scale, product(a, b), product(magnitude(a), magnitude(b)), k)


def assert_scaled(
    out: torch.Tensor, scale: torch.Tensor, want: torch.Tensor, size: torch.Tensor, k: int
) -> None:
    """Block scales are amax / 448 and ``out * scale`` is the result up to e4m3 rounding."""
    largest = reference.block_scales(size)
    bound = (k + 8) * 2**-24 * largest + 2**-22 * largest
    assert ((scale.double() - reference.block_scales(want)).abs() <= bound).all()
    wide = scale.double().repeat_interleave(128, dim=1)[:, : want.shape[1]]
    back = out.to(F32).double() * wide
    error = (k + 8) * 2**-24 * size + 2**-4 * want.abs() + 2**-10 * wide
    assert ((back - want).abs() <= error * (1 + 2**-10)).all()


def test_fp8_output_uses_its_range_and_takes_zeros() -> None:
    make = Maker(12)
    a, b = groupwise_operands(make, 3, 300, 130, (E4M3, E4M3), (1, 128, 128))
    a[0][1] = torch.zeros(()).to(E4M3)
    scale = torch.full((3, 3), -1.0)
    out = gemm.gemm_fp8_nt_groupwise(a[0], b[0], a[1], b[1], output_scale=scale)
    wide = out.to(F32)
    assert torch.equal(wide[1], torch.zeros(300))
    assert scale.isfinite().all()
    assert (scale >= 0).all()
    peaks = torch.stack([part.abs().amax(1) for part in wide.split(128, 1)], 1)[[0, 2]]
    assert (peaks == 448).all()


def test_a_nan_in_fp8_output_stays_in_its_row() -> None:
    make = Maker(13)
    a, b = groupwise_operands(make, 3, 200, 130, (E4M3, E4M3), (1, 128, 128))
    a[0].view(torch.uint8)[1, 3] = 0x7F
    out = gemm.gemm_fp8_nt_groupwise(a[0], b[0], a[1], b[1], output_scale=torch.zeros(3, 2))
    rows_with_nan = out.to(F32).isnan()
    assert rows_with_nan[1].all()
    assert not rows_with_nan[[0, 2]].any()


@cases
@given(
    seed=seeds,
    m=rows,
    n=sizes,
    k=sizes,
    fp8=st.sampled_from(FP8),
    wide=st.sampled_from([BF16, FP16, F32]),
    out_dtype=st.sampled_from([None, BF16, FP16, F32]),
    grain=st.sampled_from(GROUPWISE),
    strided=strides,
)
def test_gemm_w8a16_nt_groupwise(
    seed: int,
    m: int,
    n: int,
    k: int,
    fp8: torch.dtype,
    wide: torch.dtype,
    out_dtype: Any,
    grain: tuple[int, int, int],
    strided: bool,
) -> None:
    make = Maker(seed, strided)
    (a, _), b = groupwise_operands(make, m, n, k, (wide, fp8), grain)
    result = gemm.gemm_w8a16_nt_groupwise(a, *b, out_dtype=out_dtype, scale_granularity_mnk=grain)
    assert result.dtype == (out_dtype or wide)
    assert_close(result, lambda x, y: reference.dense(x, y, grain), a, b, k)


def test_a_row_alone_gives_the_same_bits_as_in_a_batch() -> None:
    make = Maker(14)
    a, b = groupwise_operands(make, 140, 200, 300, (E4M3, E5M2), (1, 128, 128))
    h, w = make.normal(1, 140, 90, dtype=BF16), make.normal(1, 90, 50, dtype=BF16)
    batch = gemm.gemm_fp8_nt_groupwise(a[0], b[0], a[1], b[1])
    products = gemm.bmm_fp16(h, w, F32)
    for size in (1, 2, 4, 7, 16, 33):
        part = slice(5, 5 + size)
        alone = gemm.gemm_fp8_nt_groupwise(a[0][part], b[0], a[1][part], b[1])
        assert torch.equal(bits(alone), bits(batch[part]))
        assert torch.equal(gemm.bmm_fp16(h[:, part], w, F32), products[:, part])


@pytest.mark.parametrize("batch_major", [False, True])
def test_bmm_takes_free_batch_strides(batch_major: bool) -> None:
    make = Maker(15)
    a, b = make.normal(6, 3, 40, dtype=BF16), make.normal(3, 40, 20, dtype=BF16)
    turned = a.transpose(0, 1)
    out = torch.zeros(6, 3, 20, dtype=BF16).transpose(0, 1) if batch_major else None
    result = gemm.bmm_fp16(turned, b, BF16, out)
    assert torch.equal(result, gemm.bmm_fp16(turned.contiguous(), b, BF16))


def test_no_k_leaves_c() -> None:
    c = torch.randn(2, 3, 4)
    a, b = torch.zeros(2, 3, 0, dtype=BF16), torch.zeros(2, 0, 4, dtype=BF16)
    assert torch.equal(gemm.bmm_fp16(a, b, F32, c=c), c)
    assert not gemm.bmm_fp16(a, b, F32).any()


def test_e4m3_output_saturates() -> None:
    a = torch.full((1, 1, 2), 448.0).to(E4M3)
    one = torch.ones(())
    out = gemm.bmm_fp8(a, a.transpose(1, 2), one, one, E4M3, output_scale=torch.ones(1))
    assert out.to(F32).item() == 448.0
    signed = gemm.bmm_fp8(a, a.transpose(1, 2), one, -one, E4M3, output_scale=torch.ones(1))
    assert signed.to(F32).item() == -448.0
    wide = gemm.bmm_fp8(a, a.to(F32).to(E5M2).transpose(1, 2), one, one, FP16)
    assert wide.item() == float("inf")

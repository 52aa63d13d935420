"""Cases of test_vendor.py: the dense GEMMs."""

from __future__ import annotations

import torch
from gemm_cases import BF16, E4M3, E5M2, F32, FP16, Maker, assert_within, magnitude
from musa_vendor_calls import musa, refused, served

from mate_plugin.kernels import deep_gemm, gemm
from mate_plugin.kernels.reference import gemm as oracle


def groupwise() -> None:
    make = Maker(4)
    m, n, k = 37, 160, 256
    granularities = {
        (1, 128, 128): ((m, 2), (2, 2)),
        (1, 1, -1): ((m, 1), (n, 1)),
        (1, -1, -1): ((m, 1), (1,)),
    }
    for types in ((E4M3, E4M3), (E5M2, E4M3), (E5M2, E5M2)):
        a, b = make.normal(m, k, dtype=types[0]), make.normal(n, k, dtype=types[1])
        for granularity, (shape_a, shape_b) in granularities.items():
            sa, sb = make.scale(*shape_a), make.scale(*shape_b)
            want, size = (
                oracle.dense(x, y, granularity)
                for x, y in (((a, sa), (b, sb)), (magnitude((a, sa)), magnitude((b, sb))))
            )
            for major in ("K", "MN"):
                flip = major == "MN"
                scales = [s.t().contiguous() if flip and s.dim() == 2 else s for s in (sa, sb)]
                room = torch.empty(m, n + 5, dtype=FP16, device="musa")
                with served("gemm_fp8_nt_groupwise") as seen:
                    out = gemm.gemm_fp8_nt_groupwise(
                        *musa((a, b)), *musa(tuple(scales)), major, None, granularity, room[:, :n]
                    )
                assert_within(out.cpu(), want, size, k)
                assert seen.scale_granularity_mnk == granularity
                assert seen.out is out


def groupwise_to_fp8() -> None:
    make = Maker(5)
    m, n, k = 20, 192, 256
    a, b = make.normal(m, k, dtype=E4M3), make.normal(n, k, dtype=E4M3)
    sa, sb = make.scale(m, 2), make.scale(2, 2)
    scale = torch.full((m, 2), -1.0, device="musa")
    with served("gemm_fp8_nt_groupwise") as seen:
        out = gemm.gemm_fp8_nt_groupwise(*musa((a, b, sa, sb)), output_scale=scale, backend="mubin")
    assert seen.backend == "mubin"
    want = oracle.dense((a, sa), (b, sb))
    scales = oracle.block_scales(want)
    torch.testing.assert_close(scale.cpu().double(), scales, rtol=1e-6, atol=0)
    found = oracle.dequantize(out.cpu(), scale.cpu(), (1, 128))
    assert bool(((found - want).abs() <= want.abs() / 16 + scales.max() / 512).all())


def groupwise_refused() -> None:
    make = Maker(6)
    a, b, sa, sb = musa(
        (
            make.normal(8, 256, dtype=E4M3),
            make.normal(128, 256, dtype=E4M3),
            make.scale(8, 2),
            make.scale(1, 2),
        )
    )
    run = gemm.gemm_fp8_nt_groupwise
    e5m2 = b.to(E5M2)
    refused("e4m3fn rows meet e5m2 weights", lambda: run(a, e5m2, sa, sb))
    one = torch.ones((), device="musa")
    refused(
        "one scale for all of a", lambda: run(a, b, one, one, scale_granularity_mnk=(-1, -1, -1))
    )
    per_column = torch.ones(128, 2, device="musa")
    refused(
        "one scale per 1 x 128",
        lambda: run(a, b, sa, per_column, scale_granularity_mnk=(1, 1, 128)),
    )
    refused("backend 'mudnn', not 'mubin'", lambda: run(a, b, sa, sb, backend="mubin"))
    refused("N = 17", lambda: run(a, b[:17], sa, sb))
    short = a[:, :200], b[:, :200]
    refused("K = 200", lambda: run(*short, sa, sb))
    mixed = sa.t().contiguous().t()
    wide = torch.cat([b, b]), torch.cat([sb, sb])
    refused("scale is not contiguous", lambda: run(a, wide[0], mixed, wide[1]))
    out = torch.empty(8, 128, device="musa")
    refused("the result is torch.float32", lambda: deep_gemm.fp8_gemm_nt((a, sa), (b, sb), out))
    half = out.to(BF16)
    refused("there is an addend c", lambda: deep_gemm.fp8_gemm_nt((a, sa), (b, sb), half, half))
    rows = torch.ones(8, 256, dtype=BF16, device="musa")
    refused("the operands are torch.bfloat16", lambda: gemm.gemm_w8a16_nt_groupwise(rows, b, sb))


def bmm() -> None:
    make = Maker(7)
    a, b = make.normal(3, 10, 256, dtype=E4M3), make.normal(3, 128, 256, dtype=E5M2)
    for granularity, sa in (((-1, -1, -1), make.scale(1)), ((1, -1, -1), make.scale(3, 10, 1))):
        sb = make.scale(1, 1)
        x, y = (a, sa), (b, sb)
        room = torch.empty(3, 11, 130, dtype=FP16, device="musa")[:, :10, :128]
        with served("bmm_fp8") as seen:
            out = gemm.bmm_fp8(
                musa(a), musa(b).mT, musa(sa), musa(sb), FP16, room, "mudnn", granularity
            )
        assert out is room
        assert (seen.backend, seen.b_scale.dim()) == ("mudnn", 0)
        want, size = (
            oracle.dense(*pair, granularity) for pair in ((x, y), (magnitude(x), magnitude(y)))
        )
        assert_within(out.cpu(), want, size, 256)
    wide_a, wide_b = make.normal(10, 3, 128, dtype=BF16), make.normal(3, 256, 128, dtype=BF16)
    for dtype in (BF16, FP16, F32):
        rows = musa(wide_a).transpose(0, 1)
        with served("bmm_fp16") as seen:
            out = gemm.bmm_fp16(rows, musa(wide_b).mT, dtype)
        assert seen.out_dtype == dtype
        x = wide_a.transpose(0, 1)
        assert_within(
            out.cpu(), oracle.dense(x, wide_b), oracle.dense(magnitude(x), magnitude(wide_b)), 128
        )


def bmm_refused() -> None:
    a, b = (torch.empty(2, 128, 256, dtype=E4M3, device="musa") for _ in range(2))
    one = torch.ones(1, device="musa")
    run = gemm.bmm_fp8
    refused("divided by output_scale", lambda: run(a, b.mT, one, one, BF16, output_scale=one))
    refused(
        "the result is divided",
        lambda: run(a, b.mT, one, one, E4M3, output_scale=one),
    )
    rows, each = torch.ones(2, 128, 1, device="musa"), torch.ones(2, 1, 1, device="musa")
    refused(
        "each matrix of b has a scale of its own",
        lambda: run(a, b.mT, rows, each, BF16, scale_granularity_mnk=(1, -1, -1)),
    )
    strided = a.transpose(0, 1).contiguous().transpose(0, 1)
    refused("a is not contiguous", lambda: run(strided, b.mT, one, one, BF16))
    x, y = (torch.empty(2, 128, 128, dtype=BF16, device="musa") for _ in range(2))
    refused("there is an addend c", lambda: gemm.bmm_fp16(x, y.mT, F32, c=x))
    # b with N contiguous.
    refused("b: K is not contiguous", lambda: gemm.bmm_fp16(x, y, F32))

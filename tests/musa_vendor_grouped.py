"""Cases of test_vendor.py: the grouped GEMMs."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch
from gemm_cases import BF16, E4M3, E5M2, FP16, Maker, assert_within, magnitude
from musa_vendor_calls import calls, musa, refused, served

from mate_plugin.kernels import deep_gemm, gemm
from mate_plugin.kernels.reference import gemm as oracle

NEWER = os.environ.get("FAKE_MATE_VERSION") == "0.2.7"


def ragged(
    counts: list[int],
    n: int = 256,
    k: int = 384,
    align: int = 128,
    types: Any = (E4M3, E4M3),
    seed=1,
) -> SimpleNamespace:
    """Aligned rows of some experts; rows between them and at the end are padding."""
    make = Maker(seed)
    ends, experts, row = [], [], 0
    for expert, count in enumerate(counts):
        padded = -(-count // align) * align
        ends.append(row + count)
        experts += [expert] * count + [-1] * (padded - count)
        row += padded
    rows, e = len(experts), len(counts)
    wide = types[0] in (BF16, FP16)
    a, b = make.normal(rows, k, dtype=types[0]), make.normal(e, n, k, dtype=types[1])
    sa, sb = make.scale(rows, -(-k // 128)), make.scale(e, -(-n // 128), -(-k // 128))
    return SimpleNamespace(
        a=a if wide else (a, sa),
        b=b if wide else (b, sb),
        ends=torch.tensor(ends, dtype=torch.int32),
        experts=torch.tensor(experts, dtype=torch.int32),
        counts=torch.tensor(counts, dtype=torch.int32),
        k=k,
        out=make.out(rows, n, dtype=types[0] if wide else BF16),
    )


def check_ragged(case: SimpleNamespace, out: torch.Tensor, experts: torch.Tensor) -> None:
    used = experts >= 0
    want, size = (
        oracle.ragged_m(a, b, experts)
        for a, b in ((case.a, case.b), (magnitude(case.a), magnitude(case.b)))
    )
    assert_within(out.cpu()[used], want[used], size[used], case.k)
    assert torch.equal(out.cpu()[~used], case.out[~used])


def ragged_m() -> None:
    """Each layout of rows, with FP8 of both kinds and with 16-bit operands."""
    for types in ((E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3), (BF16, BF16), (FP16, FP16)):
        wide = types[0] in (BF16, FP16)
        name = f"ragged_m_moe_gemm_{16 if wide else 8}bit"
        function = getattr(gemm, name)
        for align in (128, 256):
            case = ragged([5, 0, 130, 128], align=align, types=types)
            operands = musa(case.a), musa(case.b)
            out = musa(case.out)
            with served(name) as seen:
                assert function(*operands, musa(case.experts), out, alignment_m=align) is out
            check_ragged(case, out, case.experts)
            assert seen.gemm_mode == "per_token"
            assert seen.alignment_m == align
            if not wide:
                assert seen.scale_granularity_mnk == (1, 128, 128)
            out = musa(case.out)
            with served(name) as seen:
                function(*operands, musa(case.ends), out, "psum_expert", alignment_m=align)
            check_ragged(case, out, case.experts)
            # Running ends raise in 0.2.2.
            assert seen.gemm_mode == "per_token"
            assert torch.equal(seen.ragged_tokens_info.cpu(), case.experts)
        packed = ragged([5, 0, 130, 9], types=types, align=1)
        out = musa(packed.out)
        with served(name) as seen:
            function(
                musa(packed.a), musa(packed.b), musa(packed.counts), out, "per_expert", num_mp=3
            )
        check_ragged(packed, out, packed.experts)
        assert (seen.gemm_mode, seen.num_mp, seen.alignment_m) == ("per_expert", 3, None)


def ragged_m_by_count_with_n_major_weights() -> None:
    case = ragged([5, 0, 130, 9], align=1)
    b, sb = (x.mT.contiguous() for x in case.b)
    out = musa(case.out)
    with served("ragged_m_moe_gemm_8bit") as seen:
        gemm.ragged_m_moe_gemm_8bit(
            musa(case.a), musa((b, sb)), musa(case.counts), out, "per_expert", major_b_mode="N"
        )
    check_ragged(case, out, case.experts)
    assert seen.major_b_mode == "N"
    assert seen.input_b[0].shape == b.shape


def ragged_m_refused() -> None:
    case = ragged([128, 256])
    a, b, info, out = musa(case.a), musa(case.b), musa(case.experts), musa(case.out)
    run = gemm.ragged_m_moe_gemm_8bit
    refused("alignment_m is 1", lambda: run(a, b, info, out, alignment_m=1))
    odd = ragged([128, 256], n=200)
    odd_out = musa(odd.out)
    refused("N = 200 is no multiple of 128", lambda: run(a, musa(odd.b), info, odd_out))
    odd = ragged([128, 256], k=100)
    refused("K = 100 is no multiple of 128", lambda: run(musa(odd.a), musa(odd.b), info, out))
    fine = b[0], torch.ones(2, 256, 3, device="musa")
    refused(
        "one scale per 1 x 128", lambda: run(a, fine, info, out, scale_granularity_mnk=(1, 1, 128))
    )
    n_major = tuple(x.mT.contiguous() for x in b)
    refused("b is not contiguous", lambda: run(a, n_major, info, out, major_b_mode="N"))
    m_major = a[0].t().contiguous().t(), a[1]
    refused("a is not contiguous", lambda: run(m_major, b, info, out, major_a_mode="M"))
    few = (a[0][:200], a[1][:200]), b, info[:200], out[:200]
    refused("no multiple of alignment_m = 128", lambda: run(*few))
    transposed = a[0], a[1].t().contiguous().t()
    refused("scale of a is not contiguous", lambda: run(transposed, b, info, out))
    if NEWER:
        with served("ragged_m_moe_gemm_8bit") as seen:
            run(a, b, info, out, num_mp=2)
        assert seen.num_mp == 2
    else:
        refused("num_mp has no effect on it before 0.2.6", lambda: run(a, b, info, out, num_mp=2))
    refused("there are no experts", lambda: run(a, (b[0][:0], b[1][:0]), info, out))
    wide = ragged([128, 256], types=(BF16, BF16))
    half = torch.empty(384, 256, dtype=FP16, device="musa")
    refused(
        "the result is torch.float16",
        lambda: gemm.ragged_m_moe_gemm_16bit(musa(wide.a), musa(wide.b), info, half),
    )
    refused(
        "the operands are torch.bfloat16 rows and torch.float8_e4m3fn weights",
        lambda: gemm.ragged_m_moe_gemm_w8a16(musa(wide.a), b, info, out),
    )
    refused(
        "the result is torch.float32",
        lambda: deep_gemm.m_grouped_fp8_gemm_nt_contiguous(a, b, out.float(), info),
    )


def nothing_to_do() -> None:
    """Empty results need no kernel, whosever it is."""
    case = ragged([])
    out = torch.empty(0, 256, dtype=BF16, device="musa")
    b = torch.empty(2, 256, 384, dtype=E4M3, device="musa"), torch.ones(2, 2, 3, device="musa")
    info = torch.empty(0, dtype=torch.int32, device="musa")
    calls()
    assert gemm.ragged_m_moe_gemm_8bit(musa(case.a), b, info, out) is out
    a = torch.empty(2, 0, 384, dtype=E4M3, device="musa"), torch.ones(2, 0, 3, device="musa")
    counts = torch.zeros(2, dtype=torch.int32, device="musa")
    found = gemm.masked_moe_gemm_8bit(a, b, counts, None, enable_overlap=True)
    assert found[0].shape == (2, 0, 256)
    assert found[1].numel() == 0
    assert not calls()


def masked() -> None:
    """Rows in use of every expert, and the blocks of the signal as the vendor says."""
    make = Maker(2)
    counts = torch.tensor([7, 0, 300, 129], dtype=torch.int32)
    used = torch.arange(300) < counts[:, None]
    for types in ((E4M3, E4M3), (E5M2, E4M3), (BF16, BF16)):
        wide = types[0] is BF16
        a, b = make.normal(4, 300, 256, dtype=types[0]), make.normal(4, 640, 256, dtype=types[1])
        sa, sb = make.scale(4, 300, 2), make.scale(4, 5, 2)
        name = f"masked_moe_gemm_{16 if wide else 8}bit"
        for scale in (sa, sa.mT.contiguous().mT):
            ab = (a, b) if wide else ((a, scale), (b, sb))
            size = oracle.masked(*map(magnitude, ab), counts)
            for expected, block_m in ((None, 128), (128, 128), (200, 256)):
                with served(name) as seen:
                    out, signal, rows, threshold = getattr(gemm, name)(
                        *musa(ab), musa(counts), None, expect_tokens=expected, enable_overlap=True
                    )
                assert_within(out.cpu()[used], oracle.masked(*ab, counts)[used], size[used], 256)
                assert (rows, threshold) == (block_m, 3)
                assert seen.signal is signal
                blocks = -(-300 // block_m)
                risen = torch.arange(blocks) * block_m < counts[:, None]
                want = (threshold * risen).flatten()
                assert torch.equal(signal.cpu()[: 4 * blocks], want.int())
                assert not signal.cpu()[4 * blocks :].any()
        with served(name) as seen:
            again = getattr(gemm, name)(*musa(ab), musa(counts), torch.empty_like(out))
        assert torch.equal(again.cpu()[used], out.cpu()[used])
        assert (seen.enable_overlap, seen.signal) == (False, None)


def masked_refused() -> None:
    a = torch.empty(2, 64, 200, dtype=E4M3, device="musa"), torch.ones(2, 64, 2, device="musa")
    b = torch.empty(2, 128, 200, dtype=E4M3, device="musa"), torch.ones(2, 1, 2, device="musa")
    counts = torch.ones(2, dtype=torch.int32, device="musa")
    refused("K = 200", lambda: gemm.masked_moe_gemm_8bit(a, b, counts, None))
    one = torch.ones((), device="musa")
    refused(
        "one scale per N x K",
        lambda: gemm.masked_moe_gemm_8bit(
            (a[0], one), (b[0], one), counts, None, scale_granularity_mnk=(-1, -1, -1)
        ),
    )


def ragged_k() -> None:
    make = Maker(3)
    counts = torch.tensor([0, 111, 0, 256, 1], dtype=torch.int32)
    total, blocks = 368, 4
    for a_type, b_type in ((E4M3, E4M3), (E4M3, E5M2), (BF16, BF16)):
        wide = a_type is BF16
        a, b = make.normal(total, 256, dtype=a_type), make.normal(total, 128, dtype=b_type)
        ab = (a, b) if wide else ((a, make.scale(blocks, 256)), (b, make.scale(blocks, 128)))
        before = make.normal(5, 256, 128)
        want = before.double() + oracle.ragged_k(*ab, counts)
        size = before.abs().double() + oracle.ragged_k(*map(magnitude, ab), counts)
        out = musa(before)
        name = f"ragged_k_moe_gemm_{16 if wide else 8}bit"
        with served(name) as seen:
            assert getattr(gemm, name)(*musa(ab), musa(counts), out, num_mp=4) is out
        assert seen.num_mp == 4
        assert_within(out.cpu(), want, size, total)
    narrow = torch.zeros(5, 256, 100, device="musa")
    b = torch.empty(total, 100, dtype=BF16, device="musa")
    refused(
        "N = 100",
        lambda: gemm.ragged_k_moe_gemm_16bit(
            musa(make.normal(total, 256, dtype=BF16)), b, musa(counts), narrow
        ),
    )


def run_small() -> Any:
    case = ragged([128])
    return gemm.ragged_m_moe_gemm_8bit(*musa((case.a, case.b, case.experts, case.out)))

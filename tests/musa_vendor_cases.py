"""What test_vendor.py runs in processes where the vendor's mate is installed, or seems to be."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import indexer_cases
import pytest
import torch
from gemm_cases import BF16, E4M3, E5M2, F32, FP16, Maker, assert_within, magnitude

from mate_plugin.kernels import deep_gemm, gemm, library, select
from mate_plugin.kernels.reference import gemm as oracle
from mate_plugin.kernels.reference import indexer
from mate_plugin.kernels.vendor import package, route

NEWER = os.environ.get("FAKE_MATE_VERSION") == "0.2.7"
PROCESSORS = 6


def musa(value: Any) -> Any:
    """The same on the device, with the same strides."""
    if isinstance(value, tuple):
        return tuple(musa(one) for one in value)
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="musa").copy_(
        value
    )


def calls(name: str = "") -> list[dict[str, Any]]:
    """Arguments of the calls that the stand-in got since the last time, all of ``name``."""
    import vendor_calls

    found = list(vendor_calls.calls)
    vendor_calls.calls.clear()
    assert not name or all(function == name for function, _ in found), found
    return [arguments for _, arguments in found]


@contextlib.contextmanager
def served(name: str) -> Iterator[SimpleNamespace]:
    """One call of the vendor's ``name``; its arguments are there afterwards."""
    calls()
    before = sum(row["calls"] for row in library.counters() if row["impl"] == "vendor")
    seen = SimpleNamespace()
    yield seen
    (arguments,) = calls(name)
    vars(seen).update(arguments)
    after = [row for row in library.counters() if row["impl"] == "vendor"]
    assert sum(row["calls"] for row in after) == before + 1
    assert all(row["seconds"] > 0 for row in after)


def refused(reason: str, call: Callable[[], Any]) -> None:
    """The vendor is not asked, and our library is not there: both reasons are told."""
    calls()
    with pytest.raises(NotImplementedError) as caught:
        call()
    said = str(caught.value)
    assert "not available on 'musa': the vendor's mate 0.2." in said, said
    assert reason in said, said
    assert "libmate_musa.so is missing" in said, said
    assert not calls()


# Grouped GEMMs.


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
            assert seen.gemm_mode == ("psum_expert" if NEWER else "per_token")
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


# Dense GEMMs.


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


# The indexer.


def paged(case: indexer_cases.PagedCase, processors: int = 3, **options: Any) -> torch.Tensor:
    lens = musa(case.context_lens)
    schedule = deep_gemm.get_paged_mqa_logits_metadata(lens, case.cache.shape[1], processors)
    return deep_gemm.fp8_paged_mqa_logits(
        *musa((case.q, case.cache, case.weights)),
        lens,
        musa(case.block_table),
        schedule,
        case.max_context_len,
        options.pop("clean_logits", True),
        **options,
    )


def check_paged(case: indexer_cases.PagedCase, found: torch.Tensor) -> None:
    codes, scales = indexer.split_cache(case.cache)
    magnitudes = indexer.paged_mqa_logits(
        case.q.float().abs(),
        indexer_cases.fuse_cache(codes.float().abs().to(codes.dtype), scales.abs()),
        case.weights.abs(),
        case.context_lens,
        case.block_table,
        case.max_context_len,
        0.0,
    )
    heads, depth = case.q.shape[2:]
    indexer_cases.assert_close(found.cpu(), case.reference(), magnitudes, depth, heads)


def paged_logits() -> None:
    schedule, logits = "get_paged_mqa_logits_metadata", "fp8_paged_mqa_logits"
    for next_n, heads, depth in ((1, 32, 128), (2, 64, 64), (4, 32, 32)):
        case = indexer_cases.paged_case(8, [300, 4, 0, 65], next_n, heads, depth)
        calls()
        found = paged(case)
        one, two = calls()
        assert (one["num_mps"], one["block_kv"]) == (3, 64)
        assert two["schedule_meta"].shape == (4, 2)
        check_paged(case, found)
        # Nothing was copied: it is the vendor's tensor.
        assert found.stride() == (512, 1)
        room = torch.empty(len(found), found.shape[1] + 3, device="musa")[:, : found.shape[1]]
        assert paged(case, out=room) is room
        assert torch.equal(room.cpu(), found.cpu())
    case = indexer_cases.paged_case(9, [[70], [1]], 1, 64, 128)
    check_paged(case, paged(case))
    kinds = {row["op"]: row["calls"] for row in library.counters() if row["impl"] == "vendor"}
    assert kinds == {"paged_mqa_metadata": 7, "paged_mqa_logits": 7}
    calls()
    unclean = paged(case, clean_logits=False)
    assert calls()[1]["clean_logits"] is False
    seen = case.visible()
    assert torch.equal(unclean.cpu()[seen], paged(case).cpu()[seen])
    whole = deep_gemm.get_paged_mqa_logits_metadata(musa(case.context_lens), 64)
    assert whole.shape == (PROCESSORS + 1, 2)
    want = indexer.paged_mqa_logits_metadata(case.context_lens, 64, PROCESSORS)
    assert torch.equal(whole.cpu(), want)
    assert {schedule, logits} <= {name for names in package.FUNCTIONS.values() for name in names}


def paged_refused() -> None:
    def logits(**options: Any) -> Callable[[], Any]:
        case = indexer_cases.paged_case(10, **({"lens": [100, 20], "heads": 32} | options))
        lens = musa(case.context_lens)
        schedule = musa(indexer.paged_mqa_logits_metadata(case.context_lens, 64, 3))
        return lambda: deep_gemm.fp8_paged_mqa_logits(
            *musa((case.q, case.cache, case.weights)),
            lens,
            musa(case.block_table),
            schedule,
            case.max_context_len,
            True,
        )

    refused("next_n is 3", logits(next_n=3))
    refused("there are 4 heads", logits(heads=4))
    refused("D is 16", logits(depth=16))
    refused("blocks of the cache hold 32 tokens", logits(block=32))
    refused("the queries are torch.float8_e5m2", logits(dtype=E5M2))
    # Of lengths that differ by draft the vendor schedules the last.
    trees = [[100, 30], [20, 20]]
    refused("context_lens differ by draft", logits(lens=trees, next_n=2))
    lens = torch.tensor(trees, dtype=torch.int32, device="musa")
    metadata = deep_gemm.get_paged_mqa_logits_metadata
    refused("context_lens differ by draft", lambda: metadata(lens, 64, 3))
    refused("context_lens is not contiguous", lambda: metadata(lens[:, 0], 64, 3))
    refused("block_kv is 16", lambda: metadata(lens[:, :1].contiguous(), 16, 3))
    refused("num_mps is more than the device has", lambda: metadata(lens[0], 64, 7))
    case = indexer_cases.paged_case(10, [100, 20], heads=32)
    schedule = metadata(musa(case.context_lens), 64, 3)
    operands = (
        *musa((case.q, case.cache, case.weights, case.context_lens, case.block_table)),
        schedule,
        case.max_context_len,
    )
    run = deep_gemm.fp8_paged_mqa_logits
    refused("clean_value is 0.0", lambda: run(*operands, True, clean_value=0.0))
    refused("num_mp is below", lambda: run(*operands, True, num_mp=2))
    run(*operands, True, num_mp=3)
    run(*operands, False, clean_value=0.0)


def flat_logits() -> None:
    for heads, depth in ((32, 128), (64, 32)):
        case = indexer_cases.flat_case(11, 9, 200, heads, depth)
        operands = musa((case.q, case.kv, case.weights, case.start, case.end))
        with served("fp8_mqa_logits"):
            found = deep_gemm.fp8_mqa_logits(*operands)
        indexer_cases.assert_close(found.cpu(), case.reference(), case.magnitude(), depth, heads)
        assert found.stride() == (256, 1)
        lengths = case.end - case.start
        columns = int(lengths.max())
        with served("fp8_mqa_logits") as seen:
            short = deep_gemm.fp8_mqa_logits(*operands, False, columns)
        assert (seen.max_seqlen_k, short.shape) == (columns, (9, columns))
        inside = torch.arange(columns) < lengths[:, None]
        assert torch.equal(inside, short.cpu() < 1e29)
        flat_refused(operands)


def flat_refused(operands: tuple[Any, ...]) -> None:
    """Of operands that are served."""
    run = deep_gemm.fp8_mqa_logits
    refused("num_mp has no effect", lambda: run(*operands, num_mp=2))
    refused("max_seqlen_k is more", lambda: run(*operands, False, 201))
    refused("clean_value is 0.0", lambda: run(*operands, clean_value=0.0))
    e5m2 = operands[1][0].to(E5M2), operands[1][1]
    refused("the keys are torch.float8_e5m2", lambda: run(operands[0], e5m2, *operands[2:]))


# The package.


def choices() -> None:
    """What would serve each op, and why not."""
    version = "0.2.7" if NEWER else "0.2.2"
    for op in package.FUNCTIONS:
        choice = select.choose(op, "musa:0")
        assert (choice.impl, choice.reason) == ("vendor", f"the vendor's mate {version}")
    choice = select.choose("top_k", "musa")
    assert choice.impl is None
    assert choice.reason.startswith("top_k is not in the vendor's API; libmate_musa.so is missing")
    assert select.choose("ragged_m_gemm", "cpu").impl == library.isa()


def the_name_is_theirs() -> None:
    import mate
    import mate.gemm

    assert mate.__version__ == package.installed()
    assert not hasattr(mate, "__mate_plugin__")
    assert mate.gemm is not gemm
    assert callable(mate.moe_fused_gate)


def not_imported_before_it_is_needed() -> None:
    """A tensor of another device does not import it."""
    a = torch.ones(8, 256).to(E4M3)
    gemm.gemm_fp8_nt_groupwise(a, a, torch.ones(8, 2), torch.ones(1, 2))
    assert "mate" not in sys.modules
    assert select.choose("ragged_m_gemm", "musa").impl == "vendor"
    assert "mate" in sys.modules


def signatures() -> None:
    """The stand-in has the published signatures, so what it checks is what the vendor gets."""
    import mate.deep_gemm
    import mate.gemm
    from test_gemm_signatures import INDEXER, PUBLISHED, signature

    for module, table in ((mate.gemm, PUBLISHED), (mate.deep_gemm, INDEXER)):
        for name, parameters in table.items():
            found = signature(getattr(module, name))
            if NEWER and "moe_gemm" in name:
                assert found.pop() == ("backend", "auto")
            assert found == parameters, name


def forced_portable() -> None:
    """MATE_PLUGIN_IMPL=portable leaves the vendor out."""
    choice = select.choose("ragged_m_gemm", "musa")
    assert choice.impl is None
    assert "libmate_musa.so is missing" in choice.reason
    with pytest.raises(NotImplementedError, match=r"libmate_musa\.so is missing"):
        run_small()
    assert "mate" not in sys.modules


def run_small() -> Any:
    case = ragged([128])
    return gemm.ragged_m_moe_gemm_8bit(*musa((case.a, case.b, case.experts, case.out)))


def forced_vendor() -> None:
    """MATE_PLUGIN_IMPL=vendor raises for a form that it does not serve."""
    with served("ragged_m_moe_gemm_8bit"):
        run_small()
    case = ragged([128], n=200)
    with pytest.raises(NotImplementedError, match=r"MATE_PLUGIN_IMPL=vendor, but .* N = 200"):
        gemm.ragged_m_moe_gemm_8bit(*musa((case.a, case.b, case.experts, case.out)))
    choice = select.choose("ragged_m_gemm", "cuda")
    assert choice.reason == "MATE_PLUGIN_IMPL=vendor wants a musa device, found cuda"


def lacking(reason: str, forced: bool = False, folder: str | None = None) -> None:
    """The vendor's package is not there, or not usable: the reason is told, twice alike.

    ``folder`` comes first where packages are looked for.
    """
    sys.path[:0] = [folder] if folder else []
    choice = select.choose("ragged_m_gemm", "musa")
    assert choice.impl is None
    assert reason in choice.reason, choice.reason
    missing = "MATE_PLUGIN_IMPL=vendor, but" if forced else "libmate_musa.so is missing"
    assert missing in choice.reason
    with pytest.raises(NotImplementedError) as caught:
        run_small()
    assert reason in str(caught.value)
    assert missing in str(caught.value)


def lacking_a_function() -> None:
    """A function that is gone, or has other parameters, costs its op alone."""
    import mate.gemm

    del mate.gemm.bmm_fp8
    published = mate.gemm.gemm_fp8_nt_groupwise
    mate.gemm.gemm_fp8_nt_groupwise = lambda a, b: (a, b)
    choice = select.choose("batched_gemm", "musa")
    assert choice.impl is None
    assert "gemm_fp8_nt_groupwise of the vendor's mate" in choice.reason
    assert "unexpected keyword argument 'a_scale'" in choice.reason
    with served("ragged_m_moe_gemm_8bit"):
        run_small()
    mate.gemm.gemm_fp8_nt_groupwise = published
    package.find.cache_clear()
    x = torch.empty(1, 128, 128, dtype=E4M3, device="musa")
    one = torch.ones(1, device="musa")
    refused("has no bmm_fp8", lambda: gemm.bmm_fp8(x, x.mT, one, one, BF16))


# Ours beside theirs.


def ours_takes_the_rest() -> None:
    """With a library of ours, what the vendor refuses goes there, with the reason once in the log
    and in the report."""
    import logging

    from mate_plugin import report

    got: list[tuple[Any, ...]] = []

    class Ours:
        def __getitem__(self, name: str) -> Any:
            def entry(*arguments: Any) -> Any:
                got.append((name, *arguments))
                return 64, 192

            return entry

        def counters(self) -> str:
            return ""

        def reset_counters(self) -> None:
            pass

    library._loaded["musa"] = Ours()
    library.missing = lambda _: None
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    route.logger.addHandler(handler)
    route.logger.setLevel("INFO")
    case = ragged([128], n=200)
    operands = musa((case.a, case.b, case.experts, case.out))
    for _ in range(3):
        gemm.ragged_m_moe_gemm_8bit(*operands)
    assert [one[0] for one in got] == ["ragged_m_gemm"] * 3
    (line,) = lines
    assert line.startswith("ragged_m_gemm runs on mate-plugin's kernels: the vendor's mate 0.2.")
    assert line.endswith("N = 200 is no multiple of 128")
    (one,) = report.snapshot()["vendor_refusals"]
    assert (one["op"], one["calls"]) == ("ragged_m_gemm", 3)
    assert "3 calls on mate-plugin's kernels" in report.explain()
    report.reset()
    assert report.snapshot()["vendor_refusals"] == []
    # What our entries take is what they took: the rest of the call is the vendor's alone.
    got.clear()
    a = torch.empty(4, 200, dtype=E4M3, device="musa")
    scale = torch.ones(4, 2, device="musa")
    gemm.gemm_fp8_nt_groupwise(a, a, scale, scale[:1])
    assert len(got[0]) == 1 + 8 + 6 + 2
    assert "auto" not in got[0][-8:]
    # The blocks of a signal are of the side that served the call.
    x = torch.empty(2, 64, 200, dtype=BF16, device="musa")
    found = gemm.masked_moe_gemm_16bit(
        x, x, torch.ones(2, dtype=torch.int32, device="musa"), None, enable_overlap=True
    )
    assert found[2:] == (64, 1)
    assert [one[0] for one in got[1:]] == ["masked_gemm", "masked_signal_units"]
    # Ops that the vendor has nothing for do not ask it.
    library.entry("top_k")(a)
    assert got[-1][0] == "top_k"
    assert len(lines) == 3


def streams() -> None:
    """The current stream reaches the vendor's kernels, which look it up in tvm-ffi."""
    import tvm_ffi
    import vendor_calls

    case = ragged([128])
    operands = musa((case.a, case.b, case.experts, case.out))
    side = torch.musa.Stream()
    gemm.ragged_m_moe_gemm_8bit(*operands)
    with torch.musa.stream(side):
        gemm.ragged_m_moe_gemm_8bit(*operands)
    gemm.ragged_m_moe_gemm_8bit(*operands)
    assert vendor_calls.streams == [0, side.musa_stream, 0]
    assert side.musa_stream
    assert tvm_ffi.get_raw_stream(tvm_ffi.device("ext_dev", 0)) == 0


def graphs() -> None:
    """A call that was captured follows lengths and counts that change, and reads none."""
    case = ragged([128, 5, 200])
    a, b, out = musa((case.a, case.b, case.out))
    other = ragged([9, 256, 1], seed=2)
    for mode, first, second in (
        ("per_token", case.experts, other.experts),
        ("psum_expert", case.ends, other.ends),
    ):
        info = musa(first)
        graph = torch.musa.MUSAGraph()
        with torch.musa.graph(graph):
            gemm.ragged_m_moe_gemm_8bit(a, b, info, out, mode)
        untouched = musa(case.out)
        assert torch.equal(out.cpu().float(), untouched.cpu().float())
        rows = len(second) if mode == "per_token" else info.numel()
        info[:rows].copy_(second[:rows])
        experts = oracle.expert_of_row(info.cpu(), len(out), mode)
        graph.replay()
        used = experts >= 0
        want, size = (
            oracle.ragged_m(x, y, experts)
            for x, y in ((case.a, case.b), (magnitude(case.a), magnitude(case.b)))
        )
        assert_within(out.cpu()[used], want[used], size[used], case.k)
        out.copy_(case.out)
    paged_case = indexer_cases.paged_case(12, [300, 90], 1, 32, 64)
    lens = musa(paged_case.context_lens)
    operands = musa((paged_case.q, paged_case.cache, paged_case.weights))
    table = musa(paged_case.block_table)
    graph = torch.musa.MUSAGraph()
    with torch.musa.graph(graph):
        schedule = deep_gemm.get_paged_mqa_logits_metadata(lens, 64, 4)
        logits = deep_gemm.fp8_paged_mqa_logits(*operands, lens, table, schedule, 300, True)
    for new in ([300, 90], [17, 64], [1, 0]):
        lens.copy_(torch.tensor(new, dtype=torch.int32))
        graph.replay()
        paged_case.context_lens = torch.tensor(new, dtype=torch.int32)
        check_paged(paged_case, logits)


def a_graph_refuses_reads() -> None:
    """The simulated graph would notice a call that looks at the device."""
    x = torch.ones(3, device="musa")
    for read in (lambda: x.cpu(), lambda: x.sum().item(), lambda: x.tolist(), lambda: bool(x[0])):
        graph = torch.musa.graph(torch.musa.MUSAGraph())
        with pytest.raises(RuntimeError, match="reads the device while a graph"), graph:
            read()


def compiled() -> None:
    """The opaque op of a compiled graph ends at the vendor as well."""
    case = ragged([128, 5])
    a, b, info, out = musa((case.a, case.b, case.ends, case.out))

    def step(a: Any, b: Any, info: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return gemm.ragged_m_moe_gemm_8bit(a, b, info, out, "psum_expert") * 1

    with served("ragged_m_moe_gemm_8bit"):
        found = torch.compile(step, backend="eager", fullgraph=True)(a, b, info, out)
    check_ragged(case, found, case.experts)
    flat = indexer_cases.flat_case(13, 5, 150, 32, 64)
    operands = musa((flat.q, flat.kv, flat.weights, flat.start, flat.end))

    def score(*arguments: Any) -> torch.Tensor:
        return deep_gemm.fp8_mqa_logits(*arguments) * 1

    with served("fp8_mqa_logits"):
        found = torch.compile(score, backend="eager", fullgraph=True)(*operands)
    indexer_cases.assert_close(found.cpu(), flat.reference(), flat.magnitude(), 64, 32)


def counters_reset() -> None:
    run_small()
    (row,) = (row for row in library.counters() if row["impl"] == "vendor")
    assert (row["op"], row["calls"]) == ("ragged_m_gemm", 1)
    library.reset_counters()
    assert library.counters() == []

"""Cases of test_tilelang_route.py: who serves a call of a simulated device where TileLang is."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from types import SimpleNamespace
from typing import Any

import musa_vendor_beside
import pytest
import torch
from gemm_cases import BF16, E4M3, E5M2, SENTINEL
from musa_vendor_calls import musa
from musa_vendor_grouped import check_ragged, ragged
from tilelang_cases import assert_masked, masked_case

from mate_plugin import report
from mate_plugin.kernels import gemm, library, select
from mate_plugin.kernels.reference import gemm as oracle
from mate_plugin.kernels.tilelang import cache, grouped, route

MISSING = "libmate_musa.so is missing"


def run(case: SimpleNamespace, mode: Any = "per_token", **options: Any) -> torch.Tensor:
    """A call of the public function on the device."""
    info = {"per_token": case.experts, "psum_expert": case.ends, "per_expert": case.counts}[mode]
    operands = musa((case.a, case.b, info, case.out))
    return gemm.ragged_m_moe_gemm_8bit(*operands, mode, **options)


def impls() -> dict[str, int]:
    """Calls by implementation since the last time."""
    found = {row["impl"]: row["calls"] for row in library.counters()}
    library.reset_counters()
    return found


def log_lines() -> list[str]:
    """What is logged from here on."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("mate_plugin")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    return lines


def reasons() -> list[str]:
    """Why calls were not TileLang's, once for each call."""
    return [one["reason"] for one in report.refusals("tilelang") for _ in range(one["calls"])]


def serves() -> None:
    """Both layouts and the masked form, compiled once each, without a library of ours."""
    lines = log_lines()
    for op in cache.OPS:
        choice = select.choose(op, "musa:0")
        assert (choice.impl, choice.reason) == ("tilelang", "TileLang 0.1.6+musa")
    assert MISSING in select.choose("batched_gemm", "musa").reason
    for align in (128, 256):
        case = ragged([5, 0, 130, 128], n=200, k=400, align=align)
        for mode in ("per_token", "psum_expert"):
            for _ in range(2):
                check_ragged(case, run(case, mode, alignment_m=align), case.experts)
    assert impls() == {"tilelang": 8}
    a, b, counts, unused = masked_case([0, 70, 64, 100], 100, 200, 400)
    out = torch.full((*unused.shape, 200), SENTINEL, dtype=BF16)
    for expected, tile in ((None, grouped.WIDE), (64, grouped.NARROW)):
        found = gemm.masked_moe_gemm_8bit(
            *musa((a, b, counts)), musa(out), expect_tokens=expected
        ).cpu()
        assert_masked(found, a, b, counts, unused)
        assert sys.modules["tilelang"].compiled[-1]["tile"] == tile
    (row,) = (row for row in library.counters() if row["impl"] == "tilelang")
    assert (row["op"], row["calls"]) == ("masked_gemm", 2)
    assert row["seconds"] > 0
    assert len(sys.modules["tilelang"].compiled) == 6
    told = [line for line in lines if line.startswith("TileLang compiled ")]
    assert len(told) == 6
    what = "ragged_m_gemm (per_token, E = 4, N = 200, K = 400)"
    assert told[0].startswith(f"TileLang compiled {what} in ")
    assert not reasons()


def empty() -> None:
    """Empty results need no kernel."""
    b = torch.empty(2, 200, 384, dtype=E4M3, device="musa"), torch.ones(2, 2, 3, device="musa")
    a = torch.empty(0, 384, dtype=E4M3, device="musa"), torch.ones(0, 3, device="musa")
    none = torch.empty(0, dtype=torch.int32, device="musa")
    gemm.ragged_m_moe_gemm_8bit(a, b, none, torch.empty(0, 200, dtype=BF16, device="musa"))
    assert impls() == {}
    assert "tilelang" not in sys.modules or not sys.modules["tilelang"].compiled


def refused() -> None:
    """Both packages' reasons and ours are told where nobody is left."""
    fits = ragged([128, 256], n=200)
    mixed = ragged([128], n=200, types=(E4M3, E5M2))
    rows = (fits.a[0].t().contiguous().t(), fits.a[1]), fits.b
    a, b, counts, _ = masked_case([3], 64, 128, 128)
    fine = fits.b[0], torch.ones(2, 200, 3)
    operands, info = musa((fits.a, fits.b)), musa(fits.experts)
    out, half = musa(fits.out), musa(fits.out.half())
    for reason, call in (
        ("alignment_m is 1", lambda: run(fits, alignment_m=1)),
        ("the rows are packed", lambda: run(fits, "per_expert")),
        ("num_mp has no effect", lambda: run(fits, num_mp=2)),
        ("N = 132 is no multiple of 8", lambda: run(ragged([128], n=132))),
        ("K = 136 is no multiple of 16", lambda: run(ragged([128], k=136))),
        ("torch.float8_e4m3fn rows and torch.float8_e5m2 weights", lambda: run(mixed)),
        ("the result is torch.float16", lambda: gemm.ragged_m_moe_gemm_8bit(*operands, info, half)),
        (
            "a is not contiguous",
            lambda: gemm.ragged_m_moe_gemm_8bit(*musa(rows), info, out, major_a_mode="M"),
        ),
        (
            "one scale per 1 x 128",
            lambda: gemm.ragged_m_moe_gemm_8bit(
                operands[0], musa(fine), info, out, scale_granularity_mnk=(1, 1, 128)
            ),
        ),
        (
            "an overlap signal",
            lambda: gemm.masked_moe_gemm_8bit(*musa((a, b, counts)), None, enable_overlap=True),
        ),
    ):
        with pytest.raises(NotImplementedError) as caught:
            call()
        said = str(caught.value)
        assert reason in said.split("TileLang: ")[1], said
        if os.environ.get("MATE_PLUGIN_IMPL") == "tilelang":
            assert "MATE_PLUGIN_IMPL=tilelang, but TileLang: " in said
        else:
            assert "not available on 'musa': the vendor's mate is not installed; TileLang" in said
            assert MISSING in said
    assert impls() == {}


def ours_takes_the_rest() -> None:
    """With a library of ours the call goes there, with each reason once in the log and counted."""
    got, lines = musa_vendor_beside.put_in_place(), log_lines()
    for _ in range(3):
        run(ragged([128], n=132))
    assert [one[0] for one in got] == ["ragged_m_gemm"] * 3
    assert reasons() == ["TileLang: N = 132 is no multiple of 8"] * 3
    assert "3 calls on mate-plugin's kernels (TileLang: N = 132" in report.explain()
    assert lines == [
        "ragged_m_gemm runs on mate-plugin's kernels: the vendor's mate is not installed",
        "ragged_m_gemm runs on mate-plugin's kernels: TileLang: N = 132 is no multiple of 8",
    ]
    a, b, counts, _ = masked_case([3], 64, 128, 128)
    found = gemm.masked_moe_gemm_8bit(*musa((a, b, counts)), None, enable_overlap=True)
    assert found[2:] == (64, 1)
    assert [one[0] for one in got[3:]] == ["masked_gemm", "masked_signal_units"]
    # Ops that it has nothing for do not ask it.
    got.clear()
    x = torch.empty(4, 200, dtype=E4M3, device="musa")
    scale = torch.ones(4, 2, device="musa")
    gemm.gemm_fp8_nt_groupwise(x, x, scale, scale[:1])
    assert [one[0] for one in got] == ["batched_gemm"]
    assert len(reasons()) == 4


def portable() -> None:
    """MATE_PLUGIN_IMPL=portable leaves both packages out."""
    got = musa_vendor_beside.put_in_place()
    run(ragged([128], n=200))
    assert [one[0] for one in got] == ["ragged_m_gemm"]
    assert reasons() == ["MATE_PLUGIN_IMPL=portable asks for others"]
    assert select.choose("ragged_m_gemm", "musa").impl == "portable"
    assert "tilelang" not in sys.modules


def after_the_vendor() -> None:
    """The vendor's package comes first, TileLang takes what it refuses."""
    choice = select.choose("ragged_m_gemm", "musa")
    assert choice.impl == "vendor"
    run(ragged([128], n=256))
    assert impls() == {"vendor": 1}
    case = ragged([128, 5], n=200)
    check_ragged(case, run(case), case.experts)
    assert impls() == {"tilelang": 1}
    musa_vendor_beside.put_in_place()
    run(ragged([128], n=132))
    assert len(report.refusals("vendor")) == len(report.refusals("tilelang")) == 1
    assert impls() == {}


def instead_of_the_vendor() -> None:
    """MATE_PLUGIN_IMPL=tilelang passes the vendor's package by."""
    assert select.choose("ragged_m_gemm", "musa").impl == "tilelang"
    case = ragged([128, 5], n=256)
    check_ragged(case, run(case), case.experts)
    assert impls() == {"tilelang": 1}
    assert "mate" not in sys.modules
    got = musa_vendor_beside.put_in_place()
    x = torch.empty(128, 128, dtype=E4M3, device="musa")
    one = torch.ones(128, 1, device="musa")
    gemm.gemm_fp8_nt_groupwise(x, x, one, one[:1])
    assert [entry[0] for entry in got] == ["batched_gemm"]
    assert select.choose("batched_gemm", "musa").impl == "portable"


def vendor_alone() -> None:
    """MATE_PLUGIN_IMPL=vendor asks nobody else."""
    with pytest.raises(NotImplementedError, match=r"MATE_PLUGIN_IMPL=vendor, but .* not installed"):
        run(ragged([128], n=200))
    assert "tilelang" not in sys.modules


def broken() -> None:
    """What cannot be compiled is told once, remembered for its shape, and served by ours."""
    import tilelang

    got, lines = musa_vendor_beside.put_in_place(), log_lines()
    tilelang.broken.append(RuntimeError("mcc: no such\noption"))
    for _ in range(2):
        run(ragged([128], n=200))
    assert [one[0] for one in got] == ["ragged_m_gemm"] * 2
    assert not tilelang.compiled
    (reason, again) = reasons()
    assert reason == again
    what = "ragged_m_gemm (per_token, E = 1, N = 200, K = 384)"
    assert reason == f"TileLang failed for {what}: RuntimeError: mcc: no such option"
    assert lines.count(f"{reason}; mate-plugin's library serves it") == 1
    case = ragged([128], n=208)
    check_ragged(case, run(case), case.experts)
    assert impls() == {"tilelang": 1}


def fails_when_called() -> None:
    """The same of a first call that raises; a later one's error reaches the caller."""
    import tilelang

    def fail(*_: Any) -> None:
        raise TypeError("expected another tensor")

    got = musa_vendor_beside.put_in_place()
    genuine, tilelang.compile = tilelang.compile, lambda *_, **__: fail
    run(ragged([128], n=200))
    assert [one[0] for one in got] == ["ragged_m_gemm"]
    tilelang.compile = genuine
    case = ragged([128], n=208)
    run(case)
    route._kernels.update(dict.fromkeys(route._kernels, fail))
    with pytest.raises(TypeError, match="expected another tensor"):
        run(case)


def graphs() -> None:
    """A captured call follows experts that change; an uncompiled one goes to ours meanwhile."""
    got = musa_vendor_beside.put_in_place()
    case, other = ragged([128, 5, 200], n=200), ragged([9, 256, 1], n=200, seed=2)
    a, b, out = musa((case.a, case.b, case.out))
    for mode, first, second in (
        ("per_token", case.experts, other.experts),
        ("psum_expert", case.ends, other.ends),
    ):
        info = musa(first)

        def call(info: torch.Tensor = info, mode: Any = mode) -> torch.Tensor:
            return gemm.ragged_m_moe_gemm_8bit(a, b, info, out, mode)

        with torch.musa.graph(torch.musa.MUSAGraph()):
            call()
        assert [one[0] for one in got] == ["ragged_m_gemm"]
        assert reasons() == ["TileLang: a graph is captured before the first call of this shape"]
        call()
        out.copy_(case.out)
        graph = torch.musa.MUSAGraph()
        with torch.musa.graph(graph):
            call()
        assert impls() == {"tilelang": 2}
        assert torch.equal(out.cpu(), case.out)
        info.copy_(second[: len(first)])
        graph.replay()
        experts = oracle.expert_of_row(info.cpu(), len(out), mode)
        check_ragged(case, out, experts)
        out.copy_(case.out)
        got.clear()


def streams() -> None:
    """The current stream is torch's and tvm-ffi's while a kernel is called."""
    import tilelang

    case, side = ragged([128], n=200), torch.musa.Stream()
    for _ in range(2):
        with torch.musa.stream(side):
            run(case)
        run(case)
    handle = side.musa_stream
    assert tilelang.streams == [(handle, handle), (0, 0)] * 2


def of_another_build() -> None:
    """Upstream's package of the same name does not know the device."""
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name: None if name.endswith(".mcc") else find(name)
    why = "tilelang 0.1.6+musa is not Moore Threads' build for MUSA"
    assert why in select.choose("ragged_m_gemm", "musa").reason
    with pytest.raises(NotImplementedError, match=why.replace("+", r"\+")):
        run(ragged([128], n=200))


def on_another_device() -> None:
    """The program is for MP31."""
    torch.musa.PROPERTIES.minor = 2
    assert "for compute capability 3.1, found 3.2" in select.choose("masked_gemm", "musa").reason

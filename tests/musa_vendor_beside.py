"""Cases of test_vendor.py: our library beside the vendor's package."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import indexer_cases
import torch
from gemm_cases import BF16, E4M3
from layer_oracle import MoeWeights
from musa_vendor_calls import musa
from musa_vendor_grouped import check_ragged, ragged, run_small
from musa_vendor_indexer import check_paged, paged

from mate_plugin import report
from mate_plugin.kernels import deep_gemm, gemm, library, moe, quant
from mate_plugin.kernels.vendor import route
from mate_plugin.layers.experts import Experts


class Recorder:
    """Has every entry, and keeps what it is called with."""

    def __init__(self) -> None:
        self.got: list[tuple[Any, ...]] = []

    def __getitem__(self, name: str) -> Any:
        def entry(*arguments: Any) -> tuple[int, int]:
            self.got.append((name, *arguments))
            return 64, 192

        return entry

    def implements_function(self, _name: str) -> bool:
        return True

    def counters(self) -> str:
        return ""

    def reset_counters(self) -> None:
        pass


def put_in_place() -> list[tuple[Any, ...]]:
    """Let a recorder be our library; returns what it gets."""
    recorder = Recorder()
    library._loaded["musa"] = recorder
    library.missing = lambda _: None
    return recorder.got


def streams_of_ours() -> None:
    """Every entry of ours gets the handle of the current stream, last of all."""
    got = put_in_place()
    x = torch.ones(4, 256, dtype=BF16, device="musa")
    ids = torch.zeros(4, 2, dtype=torch.int32, device="musa")
    flat = indexer_cases.flat_case(1, 3, 20)
    odd = ragged([128], n=200)
    calls = {
        "group_quant_fp8": lambda: quant.per_token_group_quant_fp8(x),
        "moe_route": lambda: moe.route(ids, 4),
        "ragged_m_gemm": lambda: gemm.ragged_m_moe_gemm_8bit(
            *musa((odd.a, odd.b, odd.experts, odd.out))
        ),
        "mqa_logits": lambda: deep_gemm.fp8_mqa_logits(
            *musa((flat.q, flat.kv, flat.weights, flat.start, flat.end))
        ),
    }
    side = torch.musa.Stream()
    for name, call in calls.items():
        got.clear()
        with torch.musa.stream(side):
            call()
        call()
        assert [(one[0], one[-1]) for one in got] == [(name, side.musa_stream), (name, 0)]


def ours_takes_the_rest() -> None:
    """With a library of ours, what the vendor refuses goes there, with the reason once in the log
    and in the report."""
    got = put_in_place()
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    route.calls.logger.addHandler(handler)
    route.calls.logger.setLevel("INFO")
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


def counters_reset() -> None:
    run_small()
    (row,) = (row for row in library.counters() if row["impl"] == "vendor")
    assert (row["op"], row["calls"]) == ("ragged_m_gemm", 1)
    library.reset_counters()
    assert library.counters() == []


def real_kernels(path: str) -> None:
    """The vendor's package and our own kernels in one process: each serves its calls."""
    find = library.find
    library.find = lambda name: Path(path) if name == "libmate_musa.so" else find(name)
    for n, impl in ((200, "portable"), (256, "vendor")):
        case = ragged([128, 5], n=n)
        out = musa(case.out)
        library.reset_counters()
        gemm.ragged_m_moe_gemm_8bit(*musa((case.a, case.b, case.ends)), out, "psum_expert")
        check_ragged(case, out, case.experts)
        assert [(row["op"], row["impl"]) for row in library.counters()] == [("ragged_m_gemm", impl)]
    # Ours ignores the schedule, whoever made it.
    case = indexer_cases.paged_case(8, [300, 4, 0, 65], 3, 4, 32)
    check_paged(case, paged(case))
    served = [(row["op"], row["impl"]) for row in library.counters()]
    assert {("paged_mqa_metadata", "vendor"), ("paged_mqa_logits", "portable")} <= set(served)

    weights = MoeWeights(4, 256, 128)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(9, 256, generator=generator).to(BF16)
    shares = torch.rand(9, 2, generator=generator)
    ids = torch.rand(9, 4, generator=generator).argsort(dim=1)[:, :2]
    library.reset_counters()
    layer = Experts(*(musa(one) for one in weights.stored))
    found = layer.apply(*musa((hidden, shares, ids)))
    impls = {row["op"]: row["impl"] for row in library.counters()}
    assert impls.pop("ragged_m_gemm") == "vendor"
    assert set(impls.values()) == {"portable"}
    want = Experts(*weights.stored, activation="fp8").apply(hidden, shares, ids)
    torch.testing.assert_close(found.cpu(), want, rtol=2**-6, atol=2**-6 * float(want.abs().max()))

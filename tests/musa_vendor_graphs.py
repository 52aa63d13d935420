"""Cases of test_vendor.py: streams, graphs, and torch.compile."""

from __future__ import annotations

from typing import Any

import indexer_cases
import pytest
import torch
from gemm_cases import BF16, Maker, assert_within, magnitude
from musa_vendor_calls import musa, served
from musa_vendor_grouped import check_ragged, ragged
from musa_vendor_indexer import check_paged

from mate_plugin.kernels import deep_gemm, gemm
from mate_plugin.kernels.reference import gemm as oracle


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


def graphs_of_other_calls() -> None:
    """The same of counts per expert with their signal, and of ranges of keys."""
    make = Maker(14)
    a, b = make.normal(3, 140, 128, dtype=BF16), make.normal(3, 256, 128, dtype=BF16)
    counts = torch.tensor([140, 3, 0], dtype=torch.int32, device="musa")
    graph = torch.musa.MUSAGraph()
    with torch.musa.graph(graph):
        out, signal, _, threshold = gemm.masked_moe_gemm_16bit(
            *musa((a, b)), counts, None, enable_overlap=True
        )
    counts.copy_(torch.tensor([0, 140, 128], dtype=torch.int32))
    graph.replay()
    used = torch.arange(140) < counts.cpu()[:, None]
    want, size = (
        oracle.masked(x, y, counts.cpu()) for x, y in ((a, b), (magnitude(a), magnitude(b)))
    )
    assert_within(out.cpu()[used], want[used], size[used], 128)
    assert (signal.cpu()[:6] // threshold).tolist() == [0, 0, 1, 1, 1, 0]

    flat = indexer_cases.flat_case(15, 5, 150, 32, 64)
    operands = musa((flat.q, flat.kv, flat.weights, flat.start, flat.end))
    graph = torch.musa.MUSAGraph()
    with torch.musa.graph(graph):
        logits = deep_gemm.fp8_mqa_logits(*operands)
    flat.start, flat.end = torch.zeros_like(flat.start), flat.start
    operands[3].copy_(flat.start)
    operands[4].copy_(flat.end)
    graph.replay()
    indexer_cases.assert_close(logits.cpu(), flat.reference(), flat.magnitude(), 64, 32)


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

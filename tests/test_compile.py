"""torch.compile(fullgraph=True) traces every published function, with static and dynamic shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from api_calls import CALLS, E, K, N, T, i32, ragged_m, tensors
from devices import on_cpu
from gemm_cases import BF16, E4M3, Maker, bits

from mate_plugin.kernels import deep_gemm, gemm

Calls = Callable[..., Any]


def compiled(function: Calls, dynamic: bool | None = None) -> Calls:
    """``function`` in one graph; the default backend needs a C++ compiler, this one does not."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)


def flat(result: Any) -> list[Any]:
    parts = result if isinstance(result, tuple) else (result,)
    return [bits(part) if isinstance(part, torch.Tensor) else part for part in parts]


def same(left: Any, right: Any) -> bool:
    pairs = zip(flat(left), flat(right), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_gemm(call: str, dynamic: bool) -> None:
    function, build = CALLS[call]
    eager, traced = build(), build()
    if not on_cpu():
        # The blocks of a signal depend on the kernel that serves a call: tracing cannot know.
        for arguments in (eager, traced):
            arguments.pop("enable_overlap", None)
            arguments.pop("signal", None)
    want = function(**eager)
    got = compiled(function, dynamic)(**traced)
    assert same(got, want)
    for (name, x), (_, y) in zip(tensors(traced), tensors(eager), strict=True):
        assert torch.equal(bits(x), bits(y)), f"{name} differs after the call"


@pytest.mark.parametrize("mode", ["per_token", "psum_expert", "per_expert"])
@pytest.mark.parametrize("majors", ["KK", "KN", "MK"])
def test_modes_and_majors(mode: str, majors: str) -> None:
    arguments = ragged_m("8bit")
    (a, sa), (b, sb) = arguments["input_a"], arguments["input_b"]
    if majors[0] == "M":
        a = a.t().contiguous().t()
    if majors[1] == "N":
        b, sb = b.transpose(1, 2).contiguous(), sb.transpose(1, 2).contiguous()
    info = arguments["ragged_tokens_info"] if mode == "per_token" else i32(2, 5, 8)
    info = i32(2, 0, 5) if mode == "per_expert" else info

    def run(out: torch.Tensor) -> torch.Tensor:
        return gemm.ragged_m_moe_gemm_8bit(
            (a, sa), (b, sb), info, out, mode, majors[0], majors[1], alignment_m=1
        )

    want = run(torch.zeros(T, N, dtype=BF16))
    assert torch.equal(compiled(run)(torch.zeros(T, N, dtype=BF16)), want)


def test_one_graph_serves_any_number_of_rows() -> None:
    make = Maker(1)
    b = make.normal(E, N, K, dtype=E4M3), make.scale(E, 2, 3)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Any]) -> Calls:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend=backend, dynamic=True)
    def layer(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(x.shape[0], N, dtype=x.dtype)
        return gemm.ragged_m_moe_gemm_w8a16(x * 2, b, ids, out) + 1

    for rows in (5, 9, 300):
        x, ids = make.normal(rows, K, dtype=BF16), make.integers(-1, E, rows)
        want = gemm.ragged_m_moe_gemm_w8a16(x * 2, b, ids, torch.zeros(rows, N, dtype=BF16)) + 1
        assert torch.equal(layer(x, ids), want)
    assert len(graphs) == 1


def test_allocating_calls_in_a_larger_graph() -> None:
    make = Maker(2)
    x, w = make.normal(6, K, dtype=BF16), make.normal(N, K, dtype=E4M3)
    scale = make.scale(2, 3)
    batch = make.normal(2, 5, 40, dtype=BF16), make.normal(2, 40, 9, dtype=BF16)

    def layer() -> tuple[torch.Tensor, torch.Tensor]:
        y = gemm.gemm_w8a16_nt_groupwise(x, w, scale)
        return torch.relu(y), gemm.bmm_fp16(*batch, torch.float32).sum(0)

    want = layer()
    assert same(compiled(layer)(), want)
    assert same(compiled(layer, dynamic=True)(), want)


@pytest.mark.skipif(
    torch.__version__ < "2.8", reason="Dynamo hides the message of an error in this release"
)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": torch.zeros(T, N + 1, dtype=BF16)}, r"out: expected shape \(T, N\) = \(8, 130\)"),
        ({"out": torch.zeros(N, T, dtype=BF16).t()}, "out: expected N to be contiguous"),
        ({"ragged_tokens_info": None}, "ragged_tokens_info: expected a torch.Tensor"),
        ({"num_mp": 0}, "num_mp: expected at least 1, got 0"),
    ],
)
def test_errors_survive_tracing(changes: dict[str, Any], message: str) -> None:
    arguments = {**ragged_m("8bit"), **changes}
    with pytest.raises(Exception, match=message):
        compiled(gemm.ragged_m_moe_gemm_8bit)(**arguments)


def paged_case() -> dict[str, Any]:
    make = Maker(3)
    room = make.integers(0, 100, 4, 64, 1, 36).to(torch.uint8)
    room.view(4, -1)[:, 64 * 32 :] = make.scale(4, 64).view(torch.uint8)
    return {
        "q": make.normal(2, 1, 4, 32, dtype=E4M3),
        "fused_kv_cache": room,
        "weights": make.normal(2, 4),
        "context_lens": i32(70, 128),
        "block_table": i32(0, 1, 2, 3).view(2, 2),
    }


@pytest.mark.parametrize("dynamic", [False, True])
def test_indexer(dynamic: bool) -> None:
    arguments = paged_case()

    def paged(
        q: torch.Tensor,
        fused_kv_cache: torch.Tensor,
        weights: torch.Tensor,
        context_lens: torch.Tensor,
        block_table: torch.Tensor,
    ) -> torch.Tensor:
        schedule = deep_gemm.get_paged_mqa_logits_metadata(context_lens, 64, 2)
        return deep_gemm.fp8_paged_mqa_logits(
            q, fused_kv_cache, weights, context_lens, block_table, schedule, 128, True
        )

    want = paged(**arguments)
    assert same(compiled(paged, dynamic)(**arguments), want)

    make = Maker(4)
    q, k = make.normal(7, 4, 32, dtype=E4M3), make.normal(50, 32, dtype=E4M3)
    weights, starts, ends = make.normal(7, 4), i32(*range(7)), i32(*range(20, 27))
    scale = make.scale(50)

    def flat_logits(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return deep_gemm.fp8_mqa_logits(q, (k, scale), weights, starts, ends)

    assert same(compiled(flat_logits, dynamic)(q, k), flat_logits(q, k))


def test_alignment_of_the_contiguous_layout() -> None:
    def padded(x: torch.Tensor) -> torch.Tensor:
        return x + deep_gemm.get_mk_alignment_for_contiguous_layout()

    assert compiled(padded)(torch.zeros(1)).item() == 128

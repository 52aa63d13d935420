"""TileLang's kernels on a GPU, where TileLang is installed and compiles for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpu_contract
import pytest
import torch
from devices import captured
from gemm_cases import SENTINEL
from indexer_cases import PagedCase, paged_case
from tilelang_cases import (
    COUNTS,
    E4M3_NAN,
    assert_masked,
    assert_ragged,
    masked_case,
    ragged_case,
)

from mate_plugin.kernels.tilelang import cache, grouped, logits
from mate_plugin.kernels.tilelang.grouped_program import Tile

gpu_contract.require_gpu()
try:
    cache.require("these tests", torch.device(gpu_contract.DEVICE))
except NotImplementedError as reason:
    pytest.skip(str(reason), allow_module_level=True)

TILES = (grouped.WIDE, grouped.NARROW)
N, K = 392, 1104  # no multiple of 128


def empty(*shape: int) -> torch.Tensor:
    return torch.full(shape, SENTINEL, dtype=torch.bfloat16)


def rows_contiguous(scale: torch.Tensor) -> torch.Tensor:
    """The scales as DeepGEMM wants them: rows contiguous, and room after them."""
    *outer, rows, blocks = scale.shape
    room = torch.full((*outer, blocks, rows + 3), float("nan"))
    turned = room[..., :rows].transpose(-1, -2)
    turned.copy_(scale)
    return turned


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize(("layout", "alignment"), [("per_token", 128), ("psum_expert", 256)])
def test_ragged_rows_meet_their_experts(
    layout: str, alignment: int, counts: list[int], turned: bool, tile: Tile
) -> None:
    a, b, info, ids = ragged_case(layout, alignment, counts, N, K)
    out = empty(len(ids), N)
    scale = rows_contiguous(a[1]) if turned else a[1]
    grouped.ragged_m_gemm((a[0], scale), b, info, out, layout, alignment, tile)
    assert_ragged(out, a, b, ids)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_masked_rows_meet_their_experts(turned: bool, tile: Tile) -> None:
    a, b, counts, unused = masked_case([0, 170, 128, 200, 1], 200, N, K)
    out = empty(*unused.shape, N)
    scale = rows_contiguous(a[1]) if turned else a[1]
    grouped.masked_gemm((a[0], scale), b, counts, out, tile=tile)
    assert_masked(out, a, b, counts, unused)


def test_a_nan_stays_in_its_row() -> None:
    a, b, info, ids = ragged_case("per_token", 128, [130, 128], N, K)
    a[0].view(torch.uint8)[5, 700] = E4M3_NAN
    out = empty(len(ids), N)
    grouped.ragged_m_gemm(a, b, info, out)
    assert bool(out[5].isnan().all())
    assert_ragged(out, a, b, ids)


def run(case: PagedCase, clean: bool = True, **_: Any) -> torch.Tensor:
    """The case by TileLang, rows of the result apart."""
    rows = case.q.shape[0] * case.q.shape[1]
    out = torch.full((rows, case.max_context_len + 5), SENTINEL)
    logits.fp8_paged_mqa_logits(
        case.q,
        case.cache,
        case.weights,
        case.context_lens,
        case.block_table,
        out[:, : case.max_context_len],
        clean,
    )
    assert bool((out[:, case.max_context_len :] == SENTINEL).all())
    return out[:, : case.max_context_len]


@pytest.mark.parametrize("depth", [32, 64, 128])
@pytest.mark.parametrize(
    ("next_n", "heads", "lens"),
    [
        (1, 64, [1, 64, 0, 3000, 1025]),
        (2, 64, [5, 1300, 1]),
        (2, 32, [[5, 3], [0, 1300], [64, 65]]),
        (4, 64, [2500, 4, 1024]),
    ],
    ids=str,
)
def test_visible_logits_are_those_of_the_reference(
    next_n: int, heads: int, lens: Any, depth: int
) -> None:
    case = paged_case(7, lens, next_n, heads, depth, spare_columns=1)
    case.run = lambda **_: run(case)  # type: ignore[method-assign]
    PagedCase.check(case)
    visible = case.visible()
    assert torch.equal(run(case)[visible], run(case, clean=False)[visible])


@pytest.mark.parametrize("family", ["ragged", "masked", "logits"])
def test_a_graph_holds_a_call(family: str) -> None:
    call = CALLS[family]()
    want = call().clone()
    graph, out = captured(call)
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out.view(torch.uint8), want.view(torch.uint8))


def ragged_call() -> Callable[[], torch.Tensor]:
    a, b, info, ids = ragged_case("psum_expert", 128, [130, 0, 128], N, K)
    out = torch.zeros(len(ids), N, dtype=torch.bfloat16)
    return lambda: grouped.ragged_m_gemm(a, b, info, out, "psum_expert")


def masked_call() -> Callable[[], torch.Tensor]:
    a, b, counts, unused = masked_case([3, 0, 64], 64, N, K)
    out = torch.zeros(*unused.shape, N, dtype=torch.bfloat16)
    return lambda: grouped.masked_gemm(a, b, counts, out)


def logits_call() -> Callable[[], torch.Tensor]:
    case = paged_case(1, [70, 1300], 1, 64, 128)
    out = torch.zeros(2, case.max_context_len)
    arguments = (case.q, case.cache, case.weights, case.context_lens, case.block_table, out)
    return lambda: logits.fp8_paged_mqa_logits(*arguments, clean_logits=True)


CALLS = {"ragged": ragged_call, "masked": masked_call, "logits": logits_call}

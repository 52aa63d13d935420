"""The work of the indexer's scores on Hopper as blocks and warps share it."""

from __future__ import annotations

import pytest
import torch
from gpu_contract import require_gpu
from gpu_layouts import served_by
from indexer_cases import PagedCase, flat_case, paged_case

from mate_plugin.kernels import library, select

require_gpu()
if torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("needs compute capability 9.0", allow_module_level=True)

BEST = select.choose("paged_mqa_logits", "cuda").impl
# Shares within a request and over many: a warpgroup meets each request, or a few of them.
LONG = [9000, 70, 1, 0, 5000, 64, 12345]
SHORT = [1 + 37 * i % 130 for i in range(40)]
PROCESSORS = [1, 2, 7, None]


@pytest.mark.parametrize("num_mp", PROCESSORS)
@pytest.mark.parametrize("lens", [LONG, SHORT], ids=["long", "short"])
@pytest.mark.parametrize(
    ("heads", "next_n"), [(64, 1), (64, 2), (64, 4), (64, 5), (32, 1), (32, 4), (128, 1), (128, 3)]
)
def test_every_tile_is_scored_once(heads, next_n, lens, num_mp):
    case = paged_case(1, lens, next_n, heads, 128)
    library.reset_counters()
    case.check(num_mp=num_mp)
    assert served_by("paged_mqa_logits") == {BEST}


@pytest.mark.parametrize("depth", [32, 64])
def test_rows_of_other_depths(depth):
    paged_case(2, LONG, 2, 64, depth).check(num_mp=2)


def test_lengths_of_each_draft_token():
    lens = [[length, length // 2, max(length - 1, 0)] for length in LONG]
    paged_case(3, lens, 3, 64, 128).check(num_mp=3)


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_flat_rows(rows):
    flat_case(4, rows, 5000, 64, 128).check()


def filled(case: PagedCase, lens: list[int]) -> None:
    case.context_lens.copy_(torch.tensor(lens, dtype=torch.int32))


def test_a_replay_shares_out_anew():
    case = paged_case(6, LONG, 1, 64, 128)
    out = torch.empty(len(LONG), case.max_context_len)
    eager = torch.empty_like(out)
    case.run(num_mp=2, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.run(num_mp=2, out=out)
    for lens in (LONG, [*LONG[:4], 70, 3, 100], [0] * len(LONG), LONG):
        filled(case, lens)
        for _ in range(3):
            out.fill_(7)
            graph.replay()
            case.run(num_mp=2, out=eager)
            assert torch.equal(out, eager)

"""The fused scores and selection: right, the same bits for any budget, and within it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from api_calls import i32
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from index_topk_cases import UNLIMITED, RaggedCase, least_budget, ragged_case
from indexer_cases import E4M3_NAN
from topk_cases import selected

from mate_plugin.kernels import library
from mate_plugin.kernels.index_topk import index_topk, logits_peak, reset_logits_peak
from mate_plugin.kernels.reference import indexer as oracle

HERE = Path(__file__).parent
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
MIXED = [(1, 700), (0, 50), (5, 5), (1, 0), (3, 1030), (130, 200), (0, 0), (2, 64), (1, 1)]


def run_within(case: RaggedCase, k: int, budget: int, **options: object) -> torch.Tensor:
    """The selection, and proof that the logits kept to the budget."""
    reset_logits_peak()
    out = case.run(k, budget, **options)
    assert logits_peak() <= budget
    return out


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[int, int]]:
    requests = []
    for _ in range(draw(st.integers(0, 5))):
        rows = draw(st.integers(0, 6))
        before = draw(st.sampled_from([-rows, 0, 1, 20, 150, 400]))
        requests.append((rows, rows + before))
    return requests


@settings(max_examples=examples(150), deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31 - 1),
    requests=batches(),
    heads=st.sampled_from([1, 3, 4, 9, 64]),
    depth=st.sampled_from([16, 32, 64, 128]),
    block=st.sampled_from([16, 64, 128]),
    dtype=st.sampled_from(FP8),
    padding=st.integers(0, 2),
    k=st.sampled_from([1, 7, 64, 512]),
    spare=st.integers(0, 3000),
    num_mp=st.sampled_from([None, 1]),
)
def test_any_batch(seed, requests, heads, depth, block, dtype, padding, k, spare, num_mp):
    case = ragged_case(seed, requests, heads, depth, block, dtype, exact=True, padding=padding)
    want = oracle.index_topk(case.exact_logits(), k)
    out = run_within(case, k, least_budget(k, block) + spare, num_mp=num_mp)
    assert torch.equal(out, want)


@pytest.mark.parametrize("k", [1, 64, 512, 2048])
@pytest.mark.parametrize("heads", [3, 64])
def test_it_selects_from_the_paged_logits(k, heads):
    case = ragged_case(k, MIXED, heads, 64)
    out = case.run(k)
    for row, logits in enumerate(case.kernel_logits()):
        found = selected(logits.tolist(), k)
        assert out[row].tolist() == found + [-1] * (k - len(found)), f"row {row}"


@pytest.mark.parametrize("k", [1, 64, 512])
@pytest.mark.parametrize("block", [16, 64, 128])
def test_the_budget_does_not_change_a_bit(k, block):
    case = ragged_case(block, MIXED, 2, 32, block)
    want, least = case.run(k), least_budget(k, block)
    longest = 4 * 1030
    for budget in {least, least + 4, least + 100, longest - 4, longest, 2 * longest, 9 * longest}:
        if budget >= least:
            assert torch.equal(run_within(case, k, budget), want), budget
            assert torch.equal(run_within(case, k, budget, num_mp=1), want), budget


@pytest.mark.parametrize("k", [7, 600])
def test_ties_and_nan_cross_the_seams_of_runs(k):
    case = ragged_case(31, [(2, 3000)], 1, 32, 16, exact=True)
    case.q.view(torch.uint8)[1, 0, 3] = E4M3_NAN
    case.cache[case.block_table[0, 100].item(), 0, 0, 5] = E4M3_NAN
    want = oracle.index_topk(case.exact_logits(), k)
    assert want[1].tolist() == list(range(k))
    for budget in range(least_budget(k, 16), least_budget(k, 16) + 1600, 148):
        assert torch.equal(run_within(case, k, budget), want)
    assert torch.equal(case.run(k), want)


def test_long_contexts_stay_within_the_budget():
    context, k = 131072, 2048
    case = ragged_case(32, [(2, context), (1, context - 5)], 2, 32)
    want = case.run(k, num_mp=1)
    for row, logits in enumerate(case.kernel_logits()):
        assert torch.equal(want[row], oracle.index_topk([logits], k)[0])
    for budget in (64 << 10, 400_000, 4 * context, UNLIMITED):
        assert torch.equal(run_within(case, k, budget), want)
    reset_logits_peak()
    case.run(k, 4 * context)
    assert logits_peak() == 4 * context


GROWTH = """
import re, sys
from pathlib import Path
import torch
from index_topk_cases import ragged_case
torch.set_num_threads(2)
case = ragged_case(1, [(96, 131072)], 1, 16)
out = torch.empty(96, 512, dtype=torch.int32)
def resident(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
case.run(512, 1 << 20, out=out[:96])
try:
    Path("/proc/self/clear_refs").write_text("5")
except OSError:
    sys.exit(3)
before = resident("VmRSS")
case.run(512, int(sys.argv[1]), out=out)
print(resident("VmHWM") - before)
"""


def growth(budget: int) -> int:
    """Bytes by which the process grows while 48 MiB of logits pass through the budget."""
    command = [sys.executable, "-c", GROWTH, str(budget)]
    run = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=120)
    if run.returncode == 3:
        pytest.skip("the peak of the resident set cannot be reset here")
    assert run.returncode == 0, run.stderr[-2000:]
    return int(run.stdout)


def test_the_process_grows_no_more_than_the_budget():
    assert growth(1 << 20) < 4 << 20
    assert growth(64 << 20) > 8 << 20


def test_rows_that_see_no_more_than_k_tokens_take_all():
    case = ragged_case(33, [(3, 10), (1, 8), (2, 9)], 2, 32)
    case.block_table.fill_(-1)
    reset_logits_peak()
    out = case.run(10)
    assert [row[row >= 0].tolist() for row in out] == [list(range(n)) for n in (8, 9, 10, 8, 8, 9)]
    assert logits_peak() == 0
    assert case.run(8)[2].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_padding_and_empty_batches_select_nothing():
    assert ragged_case(34, [], padding=3).run(5).eq(-1).all()
    assert ragged_case(34, []).run(5).shape == (0, 5)
    case = ragged_case(34, [(1, 30), (2, 0), (0, 90)], padding=2)
    out = case.run(5)
    assert (out >= 0).sum(dim=1).tolist() == [5, 0, 0, 0, 0]
    case.context_lens[1] = -(2**31)
    assert torch.equal(case.run(5), out)


def test_blocks_that_do_not_exist_count_as_minus_infinity():
    case = ragged_case(35, [(2, 200)], 2, 32)
    for bad in (-1, case.cache.shape[0], 2**31 - 1, -(2**31)):
        case.block_table[0, 1] = bad
        out = case.run(136)
        assert out[0].tolist() == [*range(65), *range(128, 199)]
        assert out[1].tolist() == [*range(64), *range(128, 200)]


def test_strided_arguments_select_the_same():
    case = ragged_case(36, MIXED, 5, 32)
    want = case.run(64)
    rows, heads, depth = case.q.shape
    q = torch.zeros(rows, heads + 2, 2 * depth).to(case.q.dtype)[:, 1 : heads + 1, 16 : 16 + depth]
    q.view(torch.uint8).copy_(case.q.view(torch.uint8))
    num_blocks, block, _, width = case.cache.shape
    cache = torch.zeros(num_blocks, block * width + 12, dtype=torch.uint8)
    cache[:, : block * width] = case.cache.view(num_blocks, -1)
    cache = cache.as_strided((num_blocks, block, width), (block * width + 12, width, 1))
    table = torch.zeros(case.block_table.shape[0], 40, dtype=torch.int32)
    table = table[:, 3 : 3 + case.block_table.shape[1]]
    table.copy_(case.block_table)
    lens, starts = (
        torch.stack([x, x - 1], dim=1)[:, 0] for x in (case.context_lens, case.query_start_loc)
    )
    weights = case.weights.t().contiguous().t()
    strided = RaggedCase(q, cache, weights, starts, lens, table)
    wide = torch.full((rows, 70), 7, dtype=torch.int32)
    out = wide[:, 2:66]
    for budget in (UNLIMITED, least_budget(64, 64)):
        out.fill_(7)
        assert strided.run(64, budget, out=out) is out
        assert torch.equal(out, want)
    assert wide[:, :2].eq(7).all()
    assert wide[:, 66:].eq(7).all()


def test_wild_offsets_and_lengths_are_cut():
    case = ragged_case(37, [(2, 100), (3, 60), (1, 90)], 2, 32)
    good = case.run(20)
    case.context_lens[2] = 2**31 - 1
    case.query_start_loc[3] = 2**31 - 1
    assert torch.equal(case.run(20)[:5], good[:5])
    for starts in ((5, 3, 1, 0), (-(2**31), 2**31 - 1, 0, 0), (0, 6, 0, 6), (9, 9, 9, 9)):
        case.query_start_loc = i32(*starts)
        case.run(20)
    case.query_start_loc = i32(1, 2, 5, 6)
    assert case.run(20)[0].eq(-1).all()


def test_concurrent_calls_are_counted_together():
    case = ragged_case(38, [(8, 2000)], 4, 32)
    one = 8 * 2000 * 4
    want = case.run(64)
    reset_logits_peak()
    assert logits_peak() == 0
    outs: list[torch.Tensor] = []
    callers = [
        threading.Thread(target=lambda: outs.extend(case.run(64, num_mp=1) for _ in range(20)))
        for _ in range(3)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(outs) == 60
    assert all(torch.equal(out, want) for out in outs)
    assert logits_peak() in (one, 2 * one, 3 * one)
    reset_logits_peak()
    assert logits_peak() == 0


def good_arguments() -> dict:
    case = ragged_case(39, [(2, 100), (1, 7)], 4, 32)
    names = ("q", "kv_cache", "weights", "query_start_loc", "context_lens", "block_table")
    return {**dict(zip(names, case.tensors(), strict=True)), "k": 16, "budget": 1 << 20}


CACHE = torch.zeros(3, 64, 1, 36, dtype=torch.uint8)
E4M3 = torch.float8_e4m3fn
BAD = [
    ("q", torch.zeros(3, 4, 32), TypeError, "^q: expected dtype .*got torch.float32"),
    ("q", torch.zeros(3, 4, 24).to(E4M3), ValueError, "^kv_cache: expected shape"),
    ("kv_cache", CACHE.to(torch.int8), TypeError, "^kv_cache: .*got torch.int8"),
    ("kv_cache", CACHE[..., 0], ValueError, "^kv_cache: expected shape"),
    ("kv_cache", CACHE[:, :48], ValueError, "^kv_cache: block size: .*power of two"),
    ("kv_cache", CACHE[:, :8, 0], ValueError, "^kv_cache: block size: .*at least 16"),
    ("kv_cache", CACHE[:, ::2], ValueError, "^kv_cache: .*each block to be contiguous"),
    ("weights", torch.zeros(2, 4), ValueError, r"^weights: .*got \(2, 4\)"),
    ("query_start_loc", i32(0, 2), ValueError, r"^query_start_loc: .*\(STARTS\).*got \(2,\)"),
    ("context_lens", i32(1), ValueError, "^query_start_loc: expected shape"),
    ("block_table", i32(0, 1), ValueError, r"^block_table: .*got \(2,\)"),
    ("out", torch.zeros(3, 15, dtype=torch.int32), ValueError, r"^out: .*got \(3, 15\)"),
    ("k", 0, ValueError, "^k: expected at least 1, got 0"),
    ("budget", None, TypeError, "^budget: expected an integer, got NoneType"),
    ("budget", 1e6, TypeError, "^budget: expected an integer, got float"),
    (
        "budget",
        1087,
        ValueError,
        "^budget: expected at least 1088 bytes for one row of k = 16, got 1087",
    ),
    ("num_mp", 0, ValueError, "^num_mp: expected at least 1, got 0"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD)
def test_bad_arguments(name, value, error, message):
    out = torch.full((3, 16), 7, dtype=torch.int32)
    with pytest.raises(error, match=message):
        index_topk(**{**good_arguments(), "out": out, name: value})
    assert out.eq(7).all()


@pytest.mark.usefixtures("checked")
def test_index_checks_name_the_request():
    index_topk(**good_arguments())
    ragged_case(40, MIXED, padding=2).run(5)
    for name, value, message in (
        ("query_start_loc", i32(1, 2, 3), "^query_start_loc: expected 0 for request 0, got 1"),
        ("query_start_loc", i32(0, 3, 2), "0 to 3 .* got 2 after 3 at the end of request 1"),
        ("query_start_loc", i32(0, 2, 4), "0 to 3 .* got 4 after 2 at the end of request 1"),
        ("context_lens", i32(1, 7), "^context_lens: expected at least 2 tokens .*request 0, got 1"),
        ("context_lens", i32(100, -1), "^context_lens: .* at least 1 .*request 1, got -1"),
        ("context_lens", i32(1000, 7), "^block_table: expected 16 blocks .*request 0 of 1000"),
        ("block_table", i32(0, 99, 0, 0, 0, 0).view(2, 3), "got 99 at column 1 of request 0"),
        ("block_table", i32(0, 1, 0, -2, 0, 0).view(2, 3), "got -2 at column 0 of request 1"),
    ):
        with pytest.raises(ValueError, match=message):
            index_topk(**{**good_arguments(), name: value})


def test_it_compiles_into_one_graph():
    case = ragged_case(41, MIXED)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(lens, starts):
        return index_topk(
            case.q, case.cache, case.weights, starts, lens, case.block_table, 64, budget=4096
        )

    assert torch.equal(compiled(case.context_lens, case.query_start_loc), case.run(64))


def test_calls_are_counted():
    before = {row["op"]: row["calls"] for row in library.counters()}
    ragged_case(42, [(1, 90)]).run(5)
    after = {row["op"]: row["calls"] for row in library.counters()}
    assert after["index_topk"] == before.get("index_topk", 0) + 1

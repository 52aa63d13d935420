"""The indexer's logits and schedule against the oracle."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from devices import on_cpu, tensor_core_slack
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from indexer_cases import E4M3_NAN, PagedCase, flat_case, fuse_cache, paged_case

from mate_plugin.kernels import library
from mate_plugin.kernels.mqa_logits import (
    fp8_mqa_logits,
    fp8_paged_mqa_logits,
    get_paged_mqa_logits_metadata,
)
from mate_plugin.kernels.reference import indexer as oracle

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
INF = float("inf")
seeds = st.integers(0, 2**31 - 1)
depths = st.sampled_from([16, 32, 48, 64, 128])
blocks = st.sampled_from([16, 32, 64, 128])


@st.composite
def lens_and_next_n(draw: st.DrawFn) -> tuple[list, int]:
    next_n, batch = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    length = st.integers(-2, 230)
    if draw(st.booleans()):
        return draw(st.lists(length, min_size=batch, max_size=batch)), next_n
    row = st.lists(length, min_size=next_n, max_size=next_n)
    return draw(st.lists(row, min_size=batch, max_size=batch)), next_n


@settings(max_examples=examples(60), deadline=None)
@given(
    seed=seeds,
    shape=lens_and_next_n(),
    heads=st.integers(1, 9),
    depth=depths,
    block=blocks,
    dtype=st.sampled_from(FP8),
    spare=st.integers(0, 2),
)
def test_paged_logits_match_the_oracle(seed, shape, heads, depth, block, dtype, spare):
    lens, next_n = shape
    paged_case(seed, lens, next_n, heads, depth, block, dtype, spare).check()


@pytest.mark.parametrize("heads", [32, 64])
@pytest.mark.parametrize("depth", [32, 64, 128])
def test_model_shapes(heads, depth):
    paged_case(1, [1, 63, 64, 65, 300, 1027], 2, heads, depth).check()


@pytest.mark.parametrize("heads", [16, 17, 47, 100, 130])
def test_any_number_of_heads(heads):
    paged_case(24, [70, 200], 2, heads, 48).check()
    flat_case(25, 4, 90, heads, 80, k_dtype=torch.float8_e5m2).check()


def test_long_contexts_are_cut_into_several_units():
    paged_case(2, [9000, 1, 4000], 1, 2, 16).check()
    paged_case(2, [[700, 8000]], 2, 2, 16).check(num_mp=1)


def test_many_draft_tokens_are_cut_into_several_units():
    paged_case(3, [150], 70, 8, 128).check()


def test_draft_tokens_may_see_prefixes_in_any_order():
    case = paged_case(4, [[5, 90, 1, 0], [64, 63, 65, 64]], 4)
    case.check()
    assert case.run().isfinite().sum(dim=1).tolist() == [5, 90, 1, 0, 64, 63, 65, 64]


def test_one_dimension_of_lengths_counts_draft_tokens_back():
    case = paged_case(5, [1, 2, 70], 3)
    assert case.run().isfinite().sum(dim=1).tolist() == [0, 0, 1, 0, 1, 2, 68, 69, 70]


def test_empty_requests_and_empty_batches():
    case = paged_case(6, [0, -5, 3], 1, spare_columns=1)
    out = case.run()
    assert out[:2].eq(-INF).all()
    assert out[2, 3:].eq(-INF).all()
    assert paged_case(6, [], 2).run().shape == (0, 0)


def test_clean_value_fills_what_is_not_visible():
    case = paged_case(7, [40, 7], 2, spare_columns=1)
    out, visible = case.run(clean_value=0.0), case.visible()
    assert out[~visible].eq(0).all()
    assert torch.equal(out[visible], case.run()[visible])


def test_without_cleaning_only_visible_logits_are_written():
    case = paged_case(8, [40, 7], 2, spare_columns=1)
    wide = torch.full((4, case.max_context_len + 9), 7.0)
    out = wide[:, 2 : 2 + case.max_context_len]
    assert case.run(clean_logits=False, out=out) is out
    visible = case.visible()
    assert torch.equal(out[visible], case.run()[visible])
    assert out[~visible].eq(7).all()
    assert wide[:, :2].eq(7).all()
    assert wide[:, 2 + case.max_context_len :].eq(7).all()


def assert_same_logits(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """To the bit where the same kernels serve both: Hopper's do not take every stride."""
    slack = 100 * tensor_core_slack(wanted)
    torch.testing.assert_close(got, wanted, rtol=0, atol=slack, equal_nan=True)


def test_strided_arguments_give_the_same_logits():
    case = paged_case(9, [[100, 17], [3, 65]], 2, 5, 32, spare_columns=1)
    wanted = case.run()
    q = torch.zeros(2, 3, 7, 32).to(case.q.dtype)[:, ::2, 1:6]
    q.view(torch.uint8).copy_(case.q.view(torch.uint8))
    num_blocks, block, _, width = case.cache.shape
    size = block * width
    cache = torch.zeros(num_blocks, size + 12, dtype=torch.uint8)
    cache[:, :size] = case.cache.view(num_blocks, size)
    cache = cache.as_strided(case.cache.shape, (size + 12, width, width, 1))
    lens = case.context_lens.t().contiguous().t()
    table = torch.zeros(2, 9, dtype=torch.int32)[:, : case.block_table.shape[1]]
    table.copy_(case.block_table)
    weights = case.weights.t().contiguous().t()
    strided = PagedCase(q, cache, weights, lens, table, case.max_context_len)
    assert_same_logits(strided.run(), wanted)
    halved = torch.stack([lens[:, 0], lens[:, 0]], dim=1)[:, 0]
    assert halved.stride(0) == 2
    once = PagedCase(q, cache, weights, halved, table, case.max_context_len)
    plain = PagedCase(q, cache, weights, halved.contiguous(), table, case.max_context_len)
    assert_same_logits(once.run(), plain.run())


def test_threads_do_not_change_results():
    case = paged_case(10, [900, 2000, 5], 2, 8, 64)
    assert torch.equal(case.run(num_mp=1), case.run())


@pytest.mark.parametrize("code", [E4M3_NAN, 0x80 | E4M3_NAN])
def test_a_nan_key_stays_in_its_column(code):
    case = paged_case(11, [100], 2, 6)
    clean = case.run()
    case.cache.view(-1, 64 * 36)[case.block_table[0, 1], 3 * 32 + 31] = code
    out = case.run()
    assert out[:, 67].isnan().all()
    out[:, 67] = clean[:, 67]
    assert torch.equal(out, clean)


def test_a_nan_scale_stays_in_its_column():
    case = paged_case(12, [100], 1, 6)
    clean = case.run()
    codes, scales = oracle.split_cache(case.cache)
    scales[case.block_table[0, 0], 5] = float("nan")
    case.cache = fuse_cache(codes, scales)
    out = case.run()
    assert out[0, 5].isnan()
    out[0, 5] = clean[0, 5]
    assert torch.equal(out, clean)


@pytest.mark.parametrize("dtype", FP8)
def test_a_nan_query_stays_in_its_row(dtype):
    case = paged_case(13, [[100, 50, 100]], 3, 6, dtype=dtype)
    clean = case.run()
    case.q.view(torch.uint8)[0, 1, 4, 9] = E4M3_NAN
    out = case.run()
    assert out[1, :50].isnan().all()
    assert out[1, 50:].eq(-INF).all()
    assert torch.equal(out[::2], clean[::2])


def test_a_nan_weight_stays_in_its_row():
    case = paged_case(14, [100], 2, 6)
    clean = case.run()
    case.weights[1, 2] = float("nan")
    out = case.run()
    assert out[1].isnan().all()
    assert torch.equal(out[0], clean[0])


def test_infinite_queries_match_the_oracle():
    case = paged_case(15, [100], 2, 6, dtype=torch.float8_e5m2)
    case.q.view(torch.uint8)[0, 1, 4, 9] = 0x7C
    out, wanted = case.run().double(), case.reference()
    assert torch.equal(out.isnan(), wanted.isnan())
    assert torch.equal(out.isinf(), wanted.isinf())


def test_every_code_is_decoded_exactly():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    keys = torch.zeros(256, 16).to(torch.float8_e4m3fn)
    keys.view(torch.uint8)[:, 11] = codes.view(torch.uint8)
    cache = fuse_cache(keys.view(4, 64, 16), torch.ones(4, 64))
    q = torch.zeros(1, 1, 2, 16)
    q[0, 0, :, 11] = torch.tensor([1.0, -1.0])
    case = PagedCase(
        q.to(torch.float8_e4m3fn),
        cache,
        torch.tensor([[1.0, -1.0]]),
        torch.tensor([256], dtype=torch.int32),
        torch.arange(4, dtype=torch.int32)[None],
        256,
    )
    assert torch.equal(case.run()[0].nan_to_num(-1), codes.float().nan_to_num(-1))


def test_every_e5m2_key_is_decoded_exactly():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e5m2)
    keys = torch.zeros(256, 16).to(torch.float8_e5m2)
    keys.view(torch.uint8)[:, 11] = codes.view(torch.uint8)
    q = torch.zeros(1, 2, 16)
    q[0, :, 11] = torch.tensor([1.0, -1.0])
    first, end = torch.tensor([0], dtype=torch.int32), torch.tensor([256], dtype=torch.int32)
    out = fp8_mqa_logits(
        q.to(torch.float8_e4m3fn), (keys, torch.ones(256)), torch.tensor([[1.0, -1.0]]), first, end
    )
    assert torch.equal(out[0].nan_to_num(-1), codes.float().nan_to_num(-1))


def test_blocks_that_do_not_exist_count_as_not_visible():
    case = paged_case(16, [130, 200], 2, 3)
    good = case.run()
    for bad in (-1, case.cache.shape[0], 2**31 - 1, -(2**31)):
        case.block_table[1, 1] = bad
        out = case.run()
        assert out[2:, 64:128].eq(-INF).all()
        out[2:, 64:128] = good[2:, 64:128]
        assert torch.equal(out, good)


def test_lengths_past_the_table_or_the_result_count_as_not_visible():
    case = paged_case(17, [64, 100], 1, 3)
    good = case.run()
    case.context_lens[0] = 2**31 - 1
    case.block_table[0, 1] = case.block_table[0, 0]
    assert case.run()[0, :64].equal(good[0, :64])
    assert case.run()[1].equal(good[1])
    case.max_context_len = 500
    out = case.run()
    assert out[0, :128].isnan().sum() == 0
    assert out[0, 128:].eq(-INF).all()


@settings(max_examples=examples(40), deadline=None)
@given(
    seed=seeds,
    rows=st.integers(1, 40),
    tokens=st.integers(1, 200),
    heads=st.integers(1, 6),
    depth=depths,
    q_dtype=st.sampled_from(FP8),
    k_dtype=st.sampled_from(FP8),
)
def test_flat_logits_match_the_oracle(seed, rows, tokens, heads, depth, q_dtype, k_dtype):
    flat_case(seed, rows, tokens, heads, depth, q_dtype, k_dtype).check()


@settings(max_examples=examples(20), deadline=None)
@given(seed=seeds, rows=st.integers(1, 20), tokens=st.integers(1, 150), spare=st.integers(0, 5))
def test_compressed_logits_are_the_visible_ones_from_the_left(seed, rows, tokens, spare):
    case = flat_case(seed, rows, tokens)
    counts = case.end - case.start
    width = max(1, int(counts.max())) + spare
    packed = case.run(clean_logits=False, max_seqlen_k=width)
    assert packed.shape == (rows, width)
    full = case.run()
    for row in range(rows):
        first, count = int(case.start[row]), int(counts[row])
        assert torch.equal(packed[row, :count], full[row, first : first + count])


def test_flat_keys_and_scales_may_be_strided():
    case = flat_case(18, 20, 77)
    wanted = case.run()
    k = torch.zeros(77, 48).to(torch.float8_e4m3fn)[:, 8:40]
    k.view(torch.uint8).copy_(case.kv[0].view(torch.uint8))
    case.kv = (k, case.kv[1].repeat(2, 1).t()[:, :1])
    assert_same_logits(case.run(), wanted)


def test_flat_rows_of_no_tokens():
    case = flat_case(19, 3, 40)
    case.end = case.start - 1
    assert case.run().eq(-INF).all()
    assert flat_case(19, 0, 40).run().shape == (0, 40)
    assert flat_case(19, 3, 0).run().shape == (3, 0)


def test_flat_ranges_are_cut_to_the_tokens():
    case = flat_case(20, 2, 40)
    case.start = torch.tensor([-3, 30], dtype=torch.int32)
    case.end = torch.tensor([5, 2**31 - 1], dtype=torch.int32)
    assert case.run().isfinite().sum(dim=1).tolist() == [5, 10]
    packed = torch.full((2, 8), 7.0)
    case.run(clean_logits=False, max_seqlen_k=8, out=packed)
    assert packed.eq(7).sum(dim=1).tolist() == [3, 0]


def test_flat_logits_equal_paged_ones():
    case = paged_case(21, [[64 * 3] * 5], 5, 7, 64)
    codes, scales = oracle.split_cache(case.cache)
    used = case.block_table[0].long()
    flat = flat_case(21, 5, 192, 7, 64)
    flat.q, flat.weights = case.q[0], case.weights
    keys = codes.view(torch.uint8)[used].view(codes.dtype)
    flat.kv = (keys.view(192, 64), scales[used].view(192))
    flat.start, flat.end = torch.zeros_like(flat.start), torch.full_like(flat.end, 192)
    assert torch.equal(flat.run(), case.run())


@settings(max_examples=examples(80), deadline=None)
@given(
    lens=st.lists(st.integers(-3, 3000), max_size=40),
    block=st.sampled_from([16, 64, 256]),
    processors=st.integers(1, 132),
)
def test_schedule_covers_the_work_once_and_evenly(lens, block, processors):
    context_lens = torch.tensor(lens, dtype=torch.int32)
    schedule = get_paged_mqa_logits_metadata(context_lens, block, processors)
    assert schedule.dtype == torch.int32
    assert schedule.shape == (processors + 1, 2)
    assert torch.equal(schedule, oracle.paged_mqa_logits_metadata(context_lens, block, processors))
    work = [
        (request, segment)
        for request, length in enumerate(lens)
        for segment in range(-(-max(length, 0) // (4 * block)))
    ]
    starts = [tuple(row) for row in schedule.tolist()]
    assert starts[-1] == (len(lens), 0)
    position = [work.index(start) if start in work else len(work) for start in starts]
    counts = [after - before for before, after in pairwise(position)]
    assert position[0] == 0
    assert sum(counts) == len(work)
    assert max(counts) - min(counts) <= 1


def test_schedule_counts_the_largest_length_of_a_row():
    wide = torch.tensor([[5, 700, 1], [300, 2, 9]], dtype=torch.int32)
    wanted = get_paged_mqa_logits_metadata(wide.amax(dim=1), 64, 4)
    assert torch.equal(get_paged_mqa_logits_metadata(wide, 64, 4), wanted)
    flipped = wide.t().contiguous().t()
    assert torch.equal(get_paged_mqa_logits_metadata(flipped, 64, 4), wanted)
    column = get_paged_mqa_logits_metadata(wide[:, 1], 64, 4)
    assert torch.equal(column, get_paged_mqa_logits_metadata(wide[:, 1].clone(), 64, 4))


def test_schedule_takes_all_processors_by_default():
    lens = torch.tensor([1000], dtype=torch.int32)
    processors = library.processors(lens.device)
    assert get_paged_mqa_logits_metadata(lens, 64).shape == (processors + 1, 2)
    if on_cpu():
        assert processors == torch.get_num_threads()


def test_functions_compile_into_one_graph():
    case, flat = paged_case(22, [70, 3], 2), flat_case(22, 4, 50)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def both(context_lens, max_context_len):
        schedule = get_paged_mqa_logits_metadata(context_lens, 64, 2)
        paged = fp8_paged_mqa_logits(
            case.q,
            case.cache,
            case.weights,
            context_lens,
            case.block_table,
            schedule,
            max_context_len,
            True,
        )
        return schedule, paged, flat.run()

    schedule, paged, rest = both(case.context_lens, case.max_context_len)
    assert torch.equal(schedule, get_paged_mqa_logits_metadata(case.context_lens, 64, 2))
    assert torch.equal(paged, case.run())
    assert torch.equal(rest, flat.run())


def test_calls_are_counted():
    before = {row["op"]: row["calls"] for row in library.counters()}
    paged_case(23, [5]).run()
    flat_case(23, 2, 5).run()
    after = {row["op"]: row["calls"] for row in library.counters()}
    for op in ("paged_mqa_metadata", "paged_mqa_logits", "mqa_logits"):
        assert after[op] == before.get(op, 0) + 1

"""Attention over selected rows of a latent cache against the oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_mla_cases import BF16, F16, Case, case

from mate_plugin.kernels import library
from mate_plugin.kernels.checks import set_index_checks

INF, NAN = float("inf"), float("nan")


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@settings(max_examples=examples(80), deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    tokens=st.integers(0, 5),
    heads=st.sampled_from([1, 2, 3, 4, 5, 8, 16, 20, 71]),
    count=st.integers(0, 150),
    widths=st.sampled_from([(16, 16), (32, 16), (48, 48), (80, 64), (144, 96), (576, 512)]),
    block=st.sampled_from([1, 16, 64, 100]),
    dtypes=st.sampled_from([(BF16, BF16), (F16, F16), (BF16, F16)]),
    listed=st.booleans(),
)
def test_matches_the_oracle(seed, tokens, heads, count, widths, block, dtypes, listed):
    depth, value_dim = widths
    case(
        seed, tokens, heads, count, depth, value_dim, block, (90, 1, 33), *dtypes, listed=listed
    ).check()


@pytest.mark.parametrize("heads", [1, 4, 16, 128])
@pytest.mark.parametrize("count", [512, 2048])
def test_model_shapes(heads, count):
    case(1, 2, heads, count, 576, 512, 64, (5000, 300)).check()


def test_prefixes_equal_listed_positions():
    prefix = case(2, 5, 3, 0, contexts=(1500, 40), listed=False)
    prefix.lengths[0] = 1500 if prefix.request_of_token[0] == 0 else 40
    listed = torch.full((5, 1600), -1, dtype=torch.int32)
    for token, length in enumerate(prefix.lengths.tolist()):
        listed[token, :length] = torch.arange(length)
    prefix.kv_cache.nan_to_num_(0.5)
    prefix.check()
    same = dataclasses.replace(prefix, indices=listed, lengths=None)
    assert torch.equal(same.run(), prefix.run())


@pytest.mark.usefixtures("four_threads")
def test_very_long_prefixes_are_cut_into_longer_segments():
    long = case(3, 2, 2, 0, 16, 16, 64, (40000,), listed=False)
    long.lengths[:] = torch.tensor([40000, 17000])
    long.kv_cache[:] = torch.randn(long.kv_cache.shape).to(BF16)
    assert torch.equal(long.check(), long.run(num_mp=1))


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("tokens", [1, 3, 9])
@pytest.mark.parametrize("heads", [5, 20])
def test_threads_do_not_change_results(tokens, heads):
    some = case(4, tokens, heads, 1700, 64, 48, contexts=(900, 2000))
    alone = some.run(num_mp=1)
    for threads in (2, 3, 4):
        assert torch.equal(some.run(num_mp=threads), alone)


@pytest.mark.usefixtures("four_threads")
def test_the_batch_does_not_change_results():
    many = case(5, 70, 18, 1200, 64, 48, contexts=(900, 2000))
    together = many.run()
    for token in (0, 1, 33, 69):
        assert torch.equal(many.tokens(token).run(), together[token : token + 1])
    assert torch.equal(many.tokens(8, 40, 8).run(), together[[8, 40, 8]])
    few_heads = dataclasses.replace(many, q=many.q[:, 3:8])
    assert torch.equal(few_heads.tokens(7).run(), together[7:8, 3:8])


def test_trailing_holes_change_no_bit():
    some = case(6, 3, 4, 1700)
    wide = torch.full((3, 40000), -1, dtype=torch.int32)
    wide[:, :1700] = some.indices
    assert torch.equal(dataclasses.replace(some, indices=wide).run(), some.run())


def test_holes_anywhere_are_skipped():
    some = case(7, 4, 4, 40, holes=0.0)
    dense = some.check()
    spread = torch.full((4, 97), -1, dtype=torch.int32)
    spread[:, 5:85:2] = some.indices
    assert torch.equal(dataclasses.replace(some, indices=spread).run(), dense)


def test_a_position_given_twice_counts_twice():
    some = case(8, 1, 2, 3, holes=0.0)
    some.indices[:] = torch.tensor([4, 9, 9])
    some.kv_cache.nan_to_num_(0.5)
    twice = some.check()
    some.indices[:] = torch.tensor([4, 9, -1])
    assert not torch.allclose(some.check(), twice, rtol=1e-3)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_results_are_rounded_once(dtype):
    some = case(9, 4, 5, 60)
    assert torch.equal(some.run(dtype), some.run().to(dtype))
    plain = some.run(None)
    assert plain.dtype == BF16
    assert torch.equal(plain, some.run(BF16))


def test_only_the_result_is_written():
    some = case(10, 3, 5, 30)
    room = torch.full((4, 7, 50), 7.0)
    out = room[:3, 1:6, 9:41]
    assert some.run(out=out) is out
    assert torch.equal(out, some.run())
    room[:3, 1:6, 9:41] = 7
    assert room.eq(7).all()


def test_strided_arguments_give_the_same_results():
    some = case(11, 4, 5, 30)
    wanted = some.run()
    q = torch.zeros(5, 8, 64, dtype=BF16).transpose(0, 1)[:4, :, 8:56]
    q.copy_(some.q)
    num_blocks, block, depth = some.kv_cache.shape
    cache = torch.full((num_blocks, 2, block, depth + 5), NAN, dtype=BF16)[:, 1, :, 3 : depth + 3]
    cache.copy_(some.kv_cache)
    table = torch.full((2, 20), -1, dtype=torch.int32)[:, 4 : 4 + some.block_table.shape[1]]
    table.copy_(some.block_table)
    indices = torch.zeros(4, 41, dtype=torch.int32)[:, 3:33]
    indices.copy_(some.indices)
    requests = torch.zeros(4, 3, dtype=torch.int32)[:, 1]
    requests.copy_(some.request_of_token)
    strided = Case(q, cache, indices, table, requests, some.value_dim, some.scale)
    assert torch.equal(strided.run(), wanted)
    prefix = case(11, 4, 5, listed=False)
    lengths = torch.zeros(4, 2, dtype=torch.int32)[:, 1]
    lengths.copy_(prefix.lengths)
    assert torch.equal(dataclasses.replace(prefix, lengths=lengths).run(), prefix.run())


@pytest.mark.usefixtures("four_threads")
def test_padding_and_empty_selections_give_zeros():
    for tokens, count in ((4, 40), (4, 1200)):
        some = case(12, tokens, 5, count)
        good = some.run()
        some.request_of_token[1] = -1
        some.indices[2] = -1
        out = some.run()
        assert out[1:3].eq(0).all()
        assert torch.equal(out[::3], good[::3])
    prefix = case(12, 3, 2, listed=False)
    prefix.lengths[:2] = torch.tensor([0, -9])
    assert prefix.run()[:2].eq(0).all()


def test_nothing_to_do():
    for tokens, heads, count in ((0, 4, 5), (3, 0, 5), (3, 4, 0)):
        out = case(13, tokens, heads, count).run(None)
        assert out.shape == (tokens, heads, 32)
        assert out.eq(0).all()
    some = case(13, 2)
    empty = dataclasses.replace(
        some,
        block_table=some.block_table[:0],
        request_of_token=torch.full((2,), -1, dtype=torch.int32),
        kv_cache=some.kv_cache[:0],
    )
    assert empty.run().eq(0).all()


@pytest.mark.parametrize("listed", [True, False])
def test_large_scores_do_not_overflow(listed):
    some = case(14, 3, 4, 200, contexts=(300,), listed=listed)
    some.scale = 3000.0
    wanted = some.reference()
    assert some.run().isfinite().all()
    # Weights are all but zero or one here, where two largest scores are not close.
    close = (some.run() - wanted).abs().amax(dim=-1) < 1e-2
    assert close.float().mean() > 0.8
    some.q *= 0
    some.check()


def test_scores_of_any_size_in_any_order():
    """Runs of rows whose scores rise or fall by far more than the exponent's range."""
    some = case(15, 2, 2, 1300, 16, 16, contexts=(1300,))
    some.scale = 1.0
    some.indices[:] = torch.arange(1300)
    some.kv_cache[:] = 0
    ramp = torch.arange(1300, dtype=torch.float32)
    rows = torch.zeros(1300, 16)
    rows[:, 0], rows[:, 1] = ramp.sub(650).div(4).to(BF16), torch.sin(ramp)
    table = some.block_table[0].long()
    some.kv_cache[table[torch.arange(1300) // 16], torch.arange(1300) % 16] = rows.to(BF16)
    some.request_of_token[:] = 0
    some.q[:] = 0
    some.q[0, :, 0] = torch.tensor([1.0, -1.0])
    some.q[1, :, 0] = torch.tensor([4.0, -0.25])
    some.check()


def test_a_nan_row_reaches_those_who_selected_it():
    some = case(16, 6, 3, 50, contexts=(70,), holes=0.5)
    good = some.run()
    position = int(some.indices[2].max())
    assert position >= 0
    some.kv_cache[some.block_table[0, position // 16], position % 16, 40] = NAN
    touched = (some.indices == position).any(dim=1)
    assert 0 < touched.sum() < 6
    out = some.run()
    assert out[touched].isnan().all()
    assert torch.equal(out[~touched], good[~touched])


def test_a_nan_query_stays_in_its_head():
    some = case(17, 3, 7, 600)
    good = some.run()
    some.q[1, 5, 47] = NAN
    out = some.run()
    assert out[1, 5].isnan().all()
    out[1, 5] = good[1, 5]
    assert torch.equal(out, good)


def test_scores_of_minus_infinity_weigh_nothing():
    some = case(18, 1, 2, 4, holes=0.0)
    some.indices[:] = torch.tensor([3, 8, 5, 1])
    some.kv_cache.nan_to_num_(0.5)
    some.q[0, :, 47] = torch.tensor([1.0, 2.0])
    block = some.block_table[some.request_of_token[0], 0]
    some.kv_cache[block, [3, 5], 47] = -INF  # past the value
    out = some.run()
    some.indices[:] = torch.tensor([-1, 8, -1, 1])
    assert torch.equal(out, some.check())
    some.indices[:] = torch.tensor([3, 5, -1, -1])
    assert some.run().eq(0).all()
    some.q *= -1
    assert some.run().isnan().all()


def test_what_does_not_exist_is_skipped():
    some = case(19, 4, 3, 30, holes=0.0)
    good = some.indices.clone()
    width = some.block_table.shape[1] * 16
    bad = torch.tensor([width, 2**31 - 1, -2, -(2**31)], dtype=torch.int32)
    some.indices[:, 3:7] = -1
    wanted = some.run()
    some.indices[:, 3:7] = bad
    assert torch.equal(some.run(), wanted)
    column = int(good[1, 0]) // 16
    request = int(some.request_of_token[1])
    mine = some.request_of_token == request
    some.indices = torch.where((good // 16 == column) & mine[:, None], -1, good)
    wanted = some.run()
    some.indices = good
    # Whoever reads the block past the last one finds NaN.
    room = torch.cat([some.kv_cache, torch.full_like(some.kv_cache[:1], NAN)])
    some.kv_cache = room[:-1]
    for block in (-1, some.kv_cache.shape[0], 2**31 - 1, -(2**31)):
        some.block_table[request, column] = block
        assert torch.equal(some.run(), wanted)
    some.block_table[:] = -1
    assert some.run().eq(0).all()
    for request in (2, -2, 2**31 - 1):
        some.request_of_token[:] = request
        assert some.run().eq(0).all()
    prefix = case(19, 2, 2, listed=False)
    prefix.lengths[:] = 2**31 - 1
    prefix.kv_cache.nan_to_num_(0.5)
    assert prefix.run().isfinite().all()


I32 = torch.int32
SHAPED = [
    ({"value_dim": 24}, ValueError, "^value_dim: expected a multiple of 16 up to D = 48, got 24"),
    ({"value_dim": 64}, ValueError, "^value_dim: expected a multiple of 16 up to D = 48, got 64"),
    ({"value_dim": 0}, ValueError, "^value_dim: expected at least 16, got 0"),
    ({"value_dim": 16.0}, TypeError, "^value_dim: expected an integer, got float 16.0"),
    ({"scale": "1"}, TypeError, "^scale: expected a number, got str '1'"),
    ({"scale": NAN}, ValueError, "^scale: expected a finite number, got nan"),
    ({"num_mp": 0}, ValueError, "^num_mp: expected at least 1, got 0"),
    ({"indices": None}, ValueError, "^indices: expected either indices or lengths, got neither"),
    (
        {"lengths": torch.zeros(3, dtype=I32)},
        ValueError,
        "^indices: expected either indices or lengths, got both",
    ),
    (
        {"indices": None, "lengths": torch.zeros(2, dtype=I32)},
        ValueError,
        r"^lengths: expected shape \(T\) = \(3,\), got \(2,\)",
    ),
    (
        {"indices": None, "lengths": torch.zeros(3)},
        TypeError,
        "^lengths: expected dtype torch.int32, got torch.float32",
    ),
    (
        {"q": torch.zeros(3, 4, 40, dtype=BF16), "kv_cache": torch.zeros(2, 16, 40, dtype=BF16)},
        ValueError,
        "^q: expected D to be a multiple of 16, got D = 40",
    ),
    (
        {"kv_cache": torch.zeros(2, 0, 48, dtype=BF16)},
        ValueError,
        "^kv_cache: expected blocks of at least one row, got a block size of 0",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), SHAPED)
def test_wrong_arguments(changes, error, message):
    width = changes.get("value_dim", 32)
    out = torch.full((3, 4, width if isinstance(width, int) else 32), 7.0)
    with pytest.raises(error, match=message):
        case(20).run(out=out, **changes)
    assert out.eq(7).all()


CONTENTS = [
    ("request_of_token", 1, 2, r"^request_of_token: expected -1 or a request in \[0, 2\), got 2"),
    ("request_of_token", 1, -2, r"^request_of_token: expected .*, got -2 at token 1"),
    (
        "indices",
        (2, 4),
        96,
        r"^indices: expected -1 or positions in \[0, 96\), .*got 96 at token 2",
    ),
    ("indices", (2, 4), -2, r"^indices: expected -1 or positions .*, got -2 at token 2"),
    ("lengths", 1, 97, "^lengths: expected at most 96 tokens, .*, got 97 at token 1"),
    ("block_table", (slice(None), 0), 10, r"^block_table: expected blocks in \[0, 10\), got 10 at"),
    ("block_table", (slice(None), 0), -1, r"^block_table: .*got -1 at column 0 of request \d, wh"),
]


@pytest.mark.parametrize(("name", "where", "value", "message"), CONTENTS)
def test_wrong_contents_are_found_where_checks_are_on(name, where, value, message):
    some = case(21, listed=name != "lengths")
    if some.lengths is not None:
        some.lengths.clamp_(min=1)
    else:
        some.indices[:, 0] = 1
    before = set_index_checks(True)
    try:
        good = some.run()
        assert good.shape == (3, 4, 32)
        getattr(some, name)[where] = value
        out = torch.full((3, 4, 32), 7.0)
        with pytest.raises(ValueError, match=message):
            some.run(out=out)
        assert out.eq(7).all()
    finally:
        set_index_checks(before)
    some.run()


def test_calls_are_counted():
    before = {row["op"]: row["calls"] for row in library.counters()}
    case(22).run()
    after = {row["op"]: row["calls"] for row in library.counters()}
    assert after["sparse_mla"] == before.get("sparse_mla", 0) + 1

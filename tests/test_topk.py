"""The k largest values of rows against sorting in Python."""

from __future__ import annotations

import pytest
import torch
from api_calls import i32
from devices import seeded
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from topk_cases import selected_rows

from mate_plugin.kernels import library
from mate_plugin.kernels.topk import top_k

INF, NAN = float("inf"), float("nan")
KS = [1, 7, 64, 512, 2048, 20000]
# Few distinct values, so that ties decide; both zeros, both infinities and NaN among them.
SPECIAL = torch.tensor([NAN, -NAN, INF, -INF, 0.0, -0.0, 1.0, 1e-42, -1e-42, -1.0])
N = 9000


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def lengths_of(logits: torch.Tensor) -> list[int]:
    return [logits.shape[1]] * logits.shape[0]


def assert_selects(logits: torch.Tensor, k: int, lengths: list[int] | None = None) -> None:
    """Right, and the same on one thread and on all."""
    lengths = lengths or lengths_of(logits)
    want = selected_rows(logits, lengths, k)
    for num_mp in (None, 1):
        assert torch.equal(top_k(logits, i32(*lengths), k, num_mp=num_mp), want)


@settings(max_examples=examples(80), deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31 - 1),
    rows=st.integers(0, 9),
    columns=st.integers(0, 3000),
    k=st.sampled_from([1, 2, 7, 64, 512, 2048, 4000]),
    ties=st.booleans(),
    ranges=st.booleans(),
)
def test_any_shape(seed, rows, columns, k, ties, ranges):
    g = seeded(seed)
    room = torch.randn(rows, columns + 5, generator=g)
    if ties:
        room = SPECIAL[torch.randint(0, len(SPECIAL), room.shape, generator=g)]
    logits = room[:, 2 : 2 + columns]
    ends = torch.randint(0, columns + 1, (rows,), generator=g, dtype=torch.int32)
    starts = torch.randint(0, columns + 1, (rows,), generator=g, dtype=torch.int32)
    wide = torch.full((rows, k + 3), 7, dtype=torch.int32)
    out = wide[:, 1 : k + 1]
    assert top_k(logits, ends, k, starts=starts if ranges else None, out=out) is out
    want = selected_rows(logits, ends.tolist(), k, starts.tolist() if ranges else None)
    assert torch.equal(out, want)
    assert wide[:, 0].eq(7).all()
    assert wide[:, k + 1 :].eq(7).all()


@pytest.mark.parametrize("k", KS)
def test_long_rows(k):
    logits = normal(1, 3, 40000)
    assert_selects(logits, k, [40000, 16000, 39991])


@pytest.mark.parametrize("where", ["first", "last", "alike"])
def test_long_rows_that_mislead_a_sample(where):
    # A stretch that holds all of the largest, or neighbours that say the same.
    logits = normal(17, 2, 30000)
    if where == "alike":
        logits = logits[:, ::50].repeat_interleave(50, 1) + logits * 1e-3
    else:
        logits[:, slice(1500) if where == "first" else slice(-1500, None)] += 10
    assert_selects(logits, 1000, [30000, 29000])


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
def test_rows_are_cut_into_parts(rows):
    assert_selects(normal(rows, rows, 33000), 700)


ADVERSARIAL = {
    "equal": torch.ones(N),
    "zeros of both signs": torch.zeros(N).copysign(normal(2, N)),
    "ascending": torch.arange(N).float(),
    "descending": -torch.arange(N).float(),
    "few": torch.randint(0, 3, (N,), generator=seeded(3)).float(),
    "special": SPECIAL[torch.randint(0, len(SPECIAL), (N,), generator=seeded(4))],
    "nan": torch.full((N,), NAN),
    "-inf": torch.full((N,), -INF),
    "mostly -inf": torch.where(normal(5, N) > 2, normal(6, N), -INF),
    "mostly zero": torch.relu(normal(7, N) - 2),
    "one below": torch.ones(N).index_fill(0, torch.tensor([0]), 0.5),
    "largest last": torch.cat([torch.zeros(N - 600), normal(8, 600).abs() + 1]),
    "every 64th": torch.where(torch.arange(N) % 64 == 0, normal(9, N) + 100, normal(10, N)),
    "every bit": torch.randint(-(2**31), 2**31 - 1, (N,), generator=seeded(11)).int().view(
        torch.float32
    ),
    "neighbours": (torch.randint(0, 100, (N,), generator=seeded(12)).int() + 0x3F800000).view(
        torch.float32
    ),
}  # fmt: skip


@pytest.mark.parametrize("k", [1, 64, 512, 8999])
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_values(name, k):
    assert_selects(ADVERSARIAL[name].repeat(1, 2), k)
    assert_selects(ADVERSARIAL[name][None], k)


def test_order_of_special_values():
    logits = torch.tensor([[0.0, NAN, -INF, INF, -0.0, -1.0, -NAN, 1.0]])
    for k, want in {
        1: [1],
        2: [1, 6],
        3: [1, 3, 6],
        4: [1, 3, 6, 7],
        5: [0, 1, 3, 6, 7],
        6: [0, 1, 3, 4, 6, 7],
        7: [0, 1, 3, 4, 5, 6, 7],
        9: [0, 1, 2, 3, 4, 5, 6, 7, -1],
    }.items():
        assert top_k(logits, i32(8), k).tolist() == [want]


def test_denormals_are_told_apart_even_where_they_are_flushed():
    logits = (torch.randperm(N, generator=seeded(16)).int() + 1).view(1, N).view(torch.float32)
    logits[:, ::3] *= -1
    wants = {k: selected_rows(logits, [N], k) for k in (7, 512, 5000)}
    assert torch.set_flush_denormal(True)
    try:
        for k, want in wants.items():
            assert torch.equal(top_k(logits, i32(N), k, num_mp=1), want)
    finally:
        torch.set_flush_denormal(False)


def test_empty_arguments():
    assert top_k(torch.empty(0, 5), i32(), 3).shape == (0, 3)
    assert top_k(torch.empty(2, 0), i32(0, 0), 3).eq(-1).all()
    assert top_k(torch.ones(2, 4), i32(0, 2), 3).tolist() == [[-1, -1, -1], [0, 1, -1]]


def test_indices_count_from_the_start():
    logits = torch.tensor([[9.0, 1.0, 5.0, 3.0, 9.0]]).expand(3, 5).contiguous()
    out = top_k(logits, i32(4, 5, 2), 2, starts=i32(1, 4, 3))
    assert out.tolist() == [[1, 2], [0, -1], [-1, -1]]


def test_index_tensors_may_be_strided():
    logits = normal(13, 4, 100)
    ends = torch.tensor([[50, 0], [60, 0], [7, 0], [100, 0]], dtype=torch.int32)
    want = selected_rows(logits, [50, 60, 7, 100], 9, [3, 3, 3, 3])
    starts = torch.full((1,), 3, dtype=torch.int32).expand(4)
    assert torch.equal(top_k(logits, ends[:, 0], 9, starts=starts), want)
    turned = torch.stack([logits, logits], dim=1)[:, 1]
    assert torch.equal(top_k(turned, ends[:, 0], 9, starts=starts), want)


def test_columns_that_do_not_exist_are_cut_off():
    logits = normal(14, 4, 50)
    ends, starts = i32(2**31 - 1, -(2**31), 51, 10), i32(-(2**31), 0, 2**31 - 1, -1)
    assert torch.equal(top_k(logits, ends, 5), selected_rows(logits, [50, 0, 50, 10], 5))
    want = selected_rows(logits, [50, 0, 50, 10], 5, [0, 0, 50, 0])
    assert torch.equal(top_k(logits, ends, 5, starts=starts), want)


GOOD = {"logits": torch.zeros(3, 40), "lengths": i32(1, 2, 40), "k": 4}
BAD = [
    ("logits", None, TypeError, "^logits: expected a torch.Tensor, got NoneType"),
    ("logits", torch.zeros(3, 40).half(), TypeError, "^logits: expected dtype .*got torch.float16"),
    ("logits", torch.zeros(40), ValueError, r"^logits: expected shape \(R, C\).*got \(40,\)"),
    ("logits", torch.zeros(40, 3).t(), ValueError, "^logits: expected C to be contiguous"),
    ("lengths", i32(1, 2), ValueError, r"^lengths: expected shape \(R\) = \(3,?\), got \(2,\)"),
    ("lengths", torch.tensor([1, 2, 3]), TypeError, "^lengths: .*got torch.int64"),
    ("starts", i32(1), ValueError, "^starts: expected shape"),
    ("starts", [0, 0, 0], TypeError, "^starts: expected a torch.Tensor"),
    ("k", 0, ValueError, "^k: expected at least 1, got 0"),
    ("k", 4.0, TypeError, "^k: expected an integer, got float"),
    ("k", True, TypeError, "^k: expected an integer, got bool"),
    ("out", torch.zeros(3, 5, dtype=torch.int32), ValueError, r"^out: .*\(3, 4\).*got \(3, 5\)"),
    ("out", torch.zeros(3, 4, dtype=torch.int64), TypeError, "^out: .*got torch.int64"),
    ("out", torch.zeros(1, 4, dtype=torch.int32).expand(3, 4), ValueError, "^out: .*overlap"),
    ("num_mp", 0, ValueError, "^num_mp: expected at least 1, got 0"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD)
def test_bad_arguments(name, value, error, message):
    out = torch.full((3, 4), 7, dtype=torch.int32)
    with pytest.raises(error, match=message):
        top_k(**{**GOOD, "out": out, name: value})
    assert out.eq(7).all()


def test_the_result_may_not_overlap_an_argument():
    lengths = i32(*range(12))
    with pytest.raises(ValueError, match=r"^out: .*overlaps lengths"):
        top_k(torch.zeros(3, 40), lengths[::4], 4, out=lengths.view(3, 4))
    assert lengths.tolist() == list(range(12))


@pytest.mark.usefixtures("checked")
def test_index_checks_name_the_row():
    top_k(**GOOD, starts=i32(0, 40, 40))
    for lengths, starts, message in (
        (i32(1, 41, 0), None, "^lengths: expected a column from 0 to 40, got 41 at row 1"),
        (i32(1, 2, -1), None, "^lengths: expected a column from 0 to 40, got -1 at row 2"),
        (i32(1, 2, 3), i32(-1, 0, 0), "^starts: expected a column from 0 to 40, got -1 at row 0"),
        (i32(1, 2, 3), i32(0, 0, 41), "^starts: expected a column from 0 to 40, got 41 at row 2"),
    ):
        with pytest.raises(ValueError, match=message):
            top_k(torch.zeros(3, 40), lengths, 4, starts=starts)


def test_it_compiles_into_one_graph():
    logits = normal(15, 3, 500)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(lengths, starts):
        return top_k(logits, lengths, 20), top_k(logits, lengths, 20, starts=starts)

    lengths, starts = i32(400, 3, 500), i32(100, 0, 490)
    plain, ranged = compiled(lengths, starts)
    assert torch.equal(plain, top_k(logits, lengths, 20))
    assert torch.equal(ranged, top_k(logits, lengths, 20, starts=starts))


def test_calls_are_counted():
    def calls() -> int:
        return sum(row["calls"] for row in library.counters() if row["op"] == "top_k")

    before = calls()
    top_k(**GOOD)
    assert calls() == before + 1

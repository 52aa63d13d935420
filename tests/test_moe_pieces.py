"""Routing, permuting and the weighted sum, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import on_cpu, seeded
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from mate_plugin.kernels import checks, gemm, moe
from mate_plugin.kernels.reference import pieces

WIDE = (torch.bfloat16, torch.float16, torch.float32)
quick = settings(max_examples=examples(60), deadline=None)


@st.composite
def routed(draw: st.DrawFn) -> tuple[torch.Tensor, int, torch.Tensor | None]:
    """topk_ids with dropped pairs and odd strides, the number of local experts, an expert map."""
    num_tokens, topk = draw(st.integers(0, 12)), draw(st.integers(1, 5))
    num_local = draw(st.integers(1, 9))
    generator = seeded(draw(st.integers(0, 1 << 16)))
    num_global = num_local + draw(st.integers(0, 4))
    ids = torch.randint(-2, num_global + 2, (num_tokens, topk), generator=generator)
    if draw(st.booleans()):
        ids[:] = draw(st.sampled_from([-1, 0, num_global]))
    ids = ids.to(draw(st.sampled_from([torch.int32, torch.int64])))
    if draw(st.booleans()):
        ids = ids.t().contiguous().t()
    if not draw(st.booleans()):
        return ids, num_local, None
    expert_map = torch.full((num_global,), -1, dtype=torch.int32)
    places = torch.randperm(num_global, generator=generator)[:num_local]
    expert_map[places] = torch.arange(num_local, dtype=torch.int32)
    return ids, num_local, expert_map


def assert_routed(got: moe.Routing, expected: tuple[list[int], ...]) -> None:
    names = ("row_of", "counts", "ends", "expert_of_row")
    for name, wanted in zip(names, expected, strict=True):
        values = getattr(got, name).tolist()
        assert values[: len(wanted)] == wanted, name
        assert set(values[len(wanted) :]) <= {-1}, name
    assert got.row_of_slot is not None
    rows = {slot: row for row, slot in enumerate(got.row_of.tolist()) if slot >= 0}
    assert got.row_of_slot.tolist() == [rows.get(i, -1) for i in range(len(got.row_of_slot))]


@quick
@given(case=routed(), alignment=st.sampled_from([1, 2, 8, 128]))
def test_routes(case: tuple[torch.Tensor, int, torch.Tensor | None], alignment: int) -> None:
    ids, num_local, expert_map = case
    got = moe.route(ids, num_local, expert_map, alignment=alignment)
    assert_routed(got, pieces.route(ids, num_local, expert_map, alignment=alignment))
    assert got.row_of.shape == got.expert_of_row.shape
    if alignment == 1:
        assert got.row_of.shape == (ids.numel(),)
    assert got.topk == ids.shape[1]


@quick
@given(case=routed(), spare=st.integers(0, 3))
def test_routes_into_capacities(
    case: tuple[torch.Tensor, int, torch.Tensor | None], spare: int
) -> None:
    ids, num_local, expert_map = case
    most = max(moe.route(ids, num_local, expert_map).counts.tolist())
    capacity = max(most + spare, 1)
    got = moe.route(ids, num_local, expert_map, capacity=capacity)
    assert got.row_of.shape == (num_local * capacity,)
    assert_routed(got, pieces.route(ids, num_local, expert_map, capacity=capacity))
    # A GPU's counts are not known on the host: rows past the capacity are cut there.
    if most > 1 and on_cpu():
        with pytest.raises(ValueError, match=f"capacity: expected room .* got {most - 1}, which"):
            moe.route(ids, num_local, expert_map, capacity=most - 1)


@quick
@given(
    case=routed(),
    layout=st.sampled_from([{}, {"alignment": 8}, {"capacity": 60}]),
    cols=st.sampled_from([1, 16, 40, 1100]),
    dtype=st.sampled_from(WIDE),
    out_dtype=st.sampled_from(WIDE),
    weights_dtype=st.sampled_from([None, *WIDE]),
    seed=st.integers(0, 1 << 16),
)
def test_there_and_back(
    case: tuple[torch.Tensor, int, torch.Tensor | None],
    layout: dict[str, int],
    cols: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    weights_dtype: torch.dtype | None,
    seed: int,
) -> None:
    ids, num_local, expert_map = case
    num_tokens, topk = ids.shape
    generator = seeded(seed)
    hidden = torch.randn(num_tokens, cols + 3, generator=generator).to(dtype)[:, :cols]
    weights = None
    if weights_dtype is not None:
        weights = torch.rand(topk, num_tokens, generator=generator).to(weights_dtype).t()
    routing = moe.route(ids, num_local, expert_map, **layout)

    rows = torch.full((routing.row_of.shape[0], cols + 1), 7.0, dtype=dtype)
    assert (got := moe.permute(hidden, routing, topk, out=rows[:, :cols])).equal(rows[:, :cols])
    assert (got[routing.row_of < 0] == 7).all()
    assert (rows[:, cols:] == 7).all()
    rows = moe.permute(hidden, routing, topk)
    slots = routing.row_of[routing.row_of >= 0].long()
    assert rows[routing.row_of >= 0].equal(hidden[slots // topk])
    if weights is not None:
        scaled = moe.permute(hidden, routing, topk, weights)
        expected = hidden[slots // topk].float() * weights.reshape(-1)[slots, None].float()
        assert scaled[routing.row_of >= 0].equal(expected.to(dtype))

    # What belongs to no pair may hold anything.
    y = torch.full((routing.row_of.shape[0], cols + 2), float("nan"), dtype=dtype)[:, :cols]
    y[routing.row_of >= 0] = torch.randn(len(slots), cols, generator=generator).to(dtype)
    out = torch.full((num_tokens, cols + 1), float("nan"), dtype=out_dtype)[:, :cols]
    assert moe.unpermute(y, routing, weights, out) is out
    expected = pieces.unpermute(y, routing.row_of, num_tokens, topk, weights)
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(out_dtype).eps, atol=2e-6)
    again = torch.empty(num_tokens, cols, dtype=out_dtype)
    assert moe.unpermute(y, routing, weights, again).equal(out)

    # The same where only the slots of rows are known.
    alone = routing._replace(row_of_slot=None)
    searched = moe.permute(hidden, alone, topk, weights)
    assert searched[routing.row_of >= 0].equal(
        moe.permute(hidden, routing, topk, weights)[routing.row_of >= 0]
    )
    assert moe.unpermute(y, alone, weights, again).equal(out)


def test_nan_stays_with_its_token() -> None:
    ids = torch.tensor([[0, 1], [1, 2], [2, 0]])
    routing = moe.route(ids, 3)
    y = torch.randn(6, 33)
    y[routing.row_of.tolist().index(3), 5] = float("nan")
    out = moe.unpermute(y, routing, torch.rand(3, 2), torch.empty(3, 33))
    assert out.isnan().nonzero().tolist() == [[1, 5]]


def test_permutes_fp8_rows_and_their_scales() -> None:
    ids = torch.tensor([[0, 1], [1, -1], [0, 3]])
    routing = moe.route(ids, 4)
    q, scale = torch.randn(3, 200).to(torch.float8_e4m3fn), torch.rand(2, 3).t().contiguous()
    rows, scales = moe.permute(q, routing, 2), moe.permute(scale, routing, 2)
    used = routing.row_of >= 0
    tokens = routing.row_of[used].long() // 2
    assert rows.view(torch.uint8)[used].equal(q.view(torch.uint8)[tokens])
    assert scales[used].equal(scale[tokens])


@pytest.mark.parametrize("mode", ["per_token", "psum_expert", "per_expert", "masked"])
def test_layouts_are_those_of_the_grouped_gemms(mode: str) -> None:
    generator = seeded(3)
    num_tokens, topk, num_experts, size = 40, 3, 5, 64
    ids = torch.randint(-1, num_experts, (num_tokens, topk), generator=generator)
    hidden = torch.randn(num_tokens, size, generator=generator).bfloat16()
    weight = torch.randn(num_experts, 96, size, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.ones(num_experts, 1, 1)
    align = {"per_token": 128, "psum_expert": 128}.get(mode, 1)
    if mode == "masked":
        routing = moe.route(ids, num_experts, capacity=num_tokens * topk)
        rows = moe.permute(hidden, routing, topk).unflatten(0, (num_experts, -1))
        y = torch.empty(*rows.shape[:2], 96, dtype=torch.bfloat16)
        gemm.masked_moe_gemm_w8a16(rows, (weight, scale), routing.counts, y)
        y = y.flatten(0, 1)
    else:
        routing = moe.route(ids, num_experts, alignment=align)
        rows = moe.permute(hidden, routing, topk)
        y = torch.empty(rows.shape[0], 96, dtype=torch.bfloat16)
        info = {
            "per_token": routing.expert_of_row,
            "psum_expert": routing.ends,
            "per_expert": routing.counts,
        }[mode]
        gemm.ragged_m_moe_gemm_w8a16(
            rows, (weight, scale), info, y, gemm_mode=mode, alignment_m=align
        )
    out = moe.unpermute(y, routing, None, torch.empty(num_tokens, 96))
    expected = torch.zeros(num_tokens, 96)
    for token, chosen in enumerate(ids.tolist()):
        for expert in chosen:
            if expert >= 0:
                expected[token] += weight[expert].float() @ hidden[token].float()
    torch.testing.assert_close(out, expected, rtol=0.02, atol=0.2)


def test_hand_made_routing() -> None:
    row_of = torch.tensor([[3, -1, 0, 99, 1]], dtype=torch.int32).repeat(2, 1).t()[:, 0]
    routing = moe.Routing(row_of, torch.tensor([3], dtype=torch.int32))
    hidden = torch.randn(2, 20)
    rows = moe.permute(hidden, routing, 2)
    assert rows[[0, 2, 4]].equal(hidden[[1, 0, 0]])
    out = moe.unpermute(rows, routing, torch.ones(2, 2), torch.empty(2, 20))
    assert out.equal(torch.stack([hidden[0] + hidden[0], hidden[1]]))
    with pytest.raises(ValueError, match=r"routing.topk: expected a number .* got None"):
        moe.unpermute(rows, routing, None, torch.empty(2, 20))


def test_many_rows_on_all_threads() -> None:
    generator = seeded(1)
    ids = torch.randint(0, 16, (500, 8), generator=generator)
    hidden = torch.randn(500, 1000, generator=generator).bfloat16()
    weights = torch.rand(500, 8, generator=generator)
    routing = moe.route(ids, 16)
    out = moe.unpermute(moe.permute(hidden, routing, 8), routing, weights, torch.empty(500, 1000))
    torch.testing.assert_close(out, hidden.float() * weights.sum(1, keepdim=True))


ROUTING = moe.route(torch.tensor([[0, 1], [1, 0]]), 2)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            TypeError,
            "topk_ids: expected dtype torch.int32 or torch.int64, got torch.float32",
            lambda: moe.route(torch.zeros(2, 2), 3),
        ),
        (
            ValueError,
            r"topk_ids: expected shape \(T, topk\) = \(\?, \?\), got \(2,\)",
            lambda: moe.route(torch.zeros(2, dtype=torch.int32), 3),
        ),
        (
            TypeError,
            "expert_map: expected dtype torch.int32, got torch.int64",
            lambda: moe.route(torch.zeros(2, 1, dtype=torch.int32), 3, torch.arange(4)),
        ),
        (
            ValueError,
            "num_local_experts: expected at least 0, got -1",
            lambda: moe.route(torch.zeros(2, 1, dtype=torch.int32), -1),
        ),
        (
            ValueError,
            "alignment: expected at least 1, got 0",
            lambda: moe.route(torch.zeros(2, 1, dtype=torch.int32), 1, alignment=0),
        ),
        (
            ValueError,
            "alignment: expected 1 beside a capacity, got 8",
            lambda: moe.route(torch.zeros(2, 1, dtype=torch.int32), 1, alignment=8, capacity=8),
        ),
        (
            ValueError,
            "topk: expected 2, as the routing has it, got 3",
            lambda: moe.permute(torch.zeros(2, 4), ROUTING, 3),
        ),
        (
            ValueError,
            r"topk_weights: expected shape \(T, J\) = \(2, 2\), J = topk, got \(2, 1\)",
            lambda: moe.permute(torch.zeros(2, 4), ROUTING, 2, torch.zeros(2, 1)),
        ),
        (
            TypeError,
            "out: expected dtype torch.float32, that of hidden, got torch.bfloat16",
            lambda: moe.permute(
                torch.zeros(2, 4), ROUTING, 2, out=torch.zeros(4, 4, dtype=torch.bfloat16)
            ),
        ),
        (
            TypeError,
            "hidden: expected dtype .* got torch.float8_e4m3fn",
            lambda: moe.permute(
                torch.zeros(2, 4).to(torch.float8_e4m3fn), ROUTING, 2, torch.zeros(2, 2)
            ),
        ),
        (
            ValueError,
            r"routing.row_of: expected shape \(R,?\) = \(3,?\), got \(4,\)",
            lambda: moe.unpermute(torch.zeros(3, 4), ROUTING, None, torch.zeros(2, 4)),
        ),
        (
            ValueError,
            r"routing.row_of_slot: expected shape \(S,?\) = \(4,?\), S = T \* topk, got \(3,\)",
            lambda: moe.permute(
                torch.zeros(2, 4), ROUTING._replace(row_of_slot=ROUTING.row_of[:3]), 2
            ),
        ),
        (
            ValueError,
            "topk_weights: expected 2 weights per token, as the routing has them, got 3",
            lambda: moe.unpermute(torch.zeros(4, 4), ROUTING, torch.zeros(2, 3), torch.zeros(2, 4)),
        ),
        (
            ValueError,
            r"out: expected H to be contiguous",
            lambda: moe.unpermute(torch.zeros(4, 4), ROUTING, None, torch.zeros(4, 2).t()),
        ),
    ],
)
def test_refuses(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()


def test_checks_contents_on_request() -> None:
    ids = torch.tensor([[0, 1]])
    far = torch.tensor([0, 7], dtype=torch.int32)
    hidden, counts = torch.zeros(1, 4), torch.tensor([2], dtype=torch.int32)
    before = checks.set_index_checks(True)
    try:
        with pytest.raises(ValueError, match=r"expert_map: .* \[-1, 2\), got 7 at row 1"):
            moe.route(ids, 2, far)
        for rows, got in (([1, 2], "2 at row 1"), ([1, 1], "1 again at row 1")):
            routing = moe.Routing(torch.tensor(rows, dtype=torch.int32), counts, topk=2)
            with pytest.raises(ValueError, match=f"row_of: expected -1 or .* got {got}"):
                moe.permute(hidden, routing, 2)
            with pytest.raises(ValueError, match=f"row_of: expected -1 or .* got {got}"):
                moe.unpermute(torch.zeros(2, 4), routing, None, hidden)
        routing = moe.route(ids, 2)
        moe.permute(hidden, routing, 2)
        turned = routing._replace(row_of_slot=routing.row_of.flip(0).contiguous())
        with pytest.raises(ValueError, match=r"row_of_slot: expected 0, .* got 1 at slot 0"):
            moe.permute(hidden, turned, 2)
    finally:
        checks.set_index_checks(before)
    assert moe.route(ids, 2, far).counts.tolist() == [1, 0]


@pytest.mark.parametrize("layout", [{}, {"alignment": 8}, {"capacity": 12}])
def test_compiles_whole(layout: dict[str, int]) -> None:
    def layer(hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        routing = moe.route(ids, 4, **layout)
        rows = moe.permute(hidden * 2, routing, 2)
        return moe.unpermute(rows, routing, weights, torch.empty_like(hidden)) + 1

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for num_tokens in (3, 1, 6):
        hidden, weights = torch.randn(num_tokens, 40), torch.rand(num_tokens, 2)
        ids = torch.randint(-1, 5, (num_tokens, 2))
        assert compiled(hidden, ids, weights).equal(layer(hidden, ids, weights))

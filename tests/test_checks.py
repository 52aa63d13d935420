"""Contracts, value checks and the arithmetic of shared memory."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mate_plugin.kernels import checks
from mate_plugin.kernels.contract import contract
from mate_plugin.kernels.memory import overlaps, overlaps_itself

CHECK = contract(
    "gemm",
    "a: fp8 [M, K] rows",
    "scale: f32 [M, KB] major",
    "b: fp8 [E, N, K] rows",
    "out: bf16|fp16 [M, N] out",
    "bias: f32 [N] optional",
    where={"KB": "ceil_div(K, gran_k)"},
)


def good() -> list[Any]:
    return [
        torch.zeros(4, 200).to(torch.float8_e4m3fn),
        torch.zeros(4, 2),
        torch.zeros(3, 5, 200).to(torch.float8_e5m2),
        torch.zeros(4, 5, dtype=torch.bfloat16),
        None,
    ]


def test_a_contract_passes_what_it_says() -> None:
    assert CHECK(*good(), 128) is None
    values = good()
    values[1] = torch.zeros(2, 4).t()
    values[4] = torch.zeros(5)
    CHECK(*values, 128)
    values[1] = torch.zeros(4, 1)
    CHECK(*values, 0)


MESSAGES = [
    (0, torch.zeros(4, 200), TypeError, "a: expected dtype torch.float8_e4m3fn or torch.float8_e"),
    (1, torch.zeros(4, 3), ValueError, "scale: expected shape (M, KB) = (4, 2), KB = ceil_div(K"),
    (1, torch.zeros(8, 4)[::2, ::2], ValueError, "scale: expected KB or M to be contiguous in (M"),
    (
        2,
        torch.zeros(3, 5, 199).to(torch.float8_e5m2),
        ValueError,
        "b: expected shape (E, N, K) = (?, ?, 200), got (3, 5, 199)",
    ),
    (3, [1.0], TypeError, "out: expected a torch.Tensor, got list [1.0]"),
    (
        3,
        torch.zeros(1, 5, dtype=torch.bfloat16).expand(4, 5),
        ValueError,
        "out: expected elements that do not overlap in (M, N) = (4, 5), got strides (0, 1)",
    ),
    (4, torch.zeros(5, device="meta"), ValueError, "bias: expected device cpu (that of a), got me"),
    (4, torch.zeros(6), ValueError, "bias: expected shape (N) = (5,), got (6,)"),
]


@pytest.mark.parametrize(("index", "value", "kind", "message"), MESSAGES)
def test_messages(index: int, value: Any, kind: type[Exception], message: str) -> None:
    values = good()
    values[index] = value
    with pytest.raises(kind) as caught:
        CHECK(*values, 128)
    assert str(caught.value).startswith(message)
    assert ", got " in str(caught.value)


@pytest.mark.parametrize(
    "line", ["a fp8 [M, K]", "a: fp9 [M]", "a: fp8 [M] backwards", "a: fp8 M, K", "a: fp8"]
)
def test_a_misspelt_contract_fails_when_it_is_made(line: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        contract("gemm", line)


def test_an_optional_tensor_binds_nothing() -> None:
    with pytest.raises(ValueError, match="cannot bind N"):
        contract("gemm", "a: fp8 [M]", "bias: f32 [N] optional")


def test_dimensions_of_one_or_no_element_may_have_any_stride() -> None:
    check = contract("gemm", "a: f32 [M, K] rows", "b: f32 [K, M] cols", "c: f32 [M, K] out")
    one = torch.zeros(3, 2)[:, :1]
    check(one, torch.zeros(2, 6)[:1, ::2], torch.zeros(3, 4)[:, 1:2])
    none = torch.zeros(0, 6)[:, ::2]
    check(none, torch.zeros(6, 0)[::2], torch.zeros(0, 6)[:, ::2])


def addresses(x: torch.Tensor) -> set[int]:
    """Every byte of a small tensor."""
    found = set()
    for index in itertools.product(*map(range, x.shape)):
        at = x.storage_offset() + sum(i * s for i, s in zip(index, x.stride(), strict=True))
        found |= {at * x.element_size() + byte for byte in range(x.element_size())}
    return found


views = st.tuples(
    st.integers(0, 12),  # offset
    st.integers(0, 3),  # rows
    st.integers(0, 4),  # columns
    st.sampled_from([0, 1, 2, 4, 6, 8]),  # row stride
    st.sampled_from([1, 1, 2]),  # column stride
)


def view(room: torch.Tensor, of: tuple[int, ...]) -> torch.Tensor:
    offset, rows, columns, row_stride, column_stride = of
    return room.as_strided((rows, columns), (row_stride, column_stride), offset)


@given(views, views)
def test_overlaps_misses_no_shared_byte(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    room = torch.zeros(64, dtype=torch.int16)
    a, b = view(room, left), view(room, right)
    shared = addresses(a) & addresses(b)
    if shared:
        assert overlaps(a, (None, b))
    elif not (a.numel() and b.numel()):
        assert not overlaps(a, (b,))


def test_overlaps_tells_neighbours_apart() -> None:
    room = torch.zeros(6, 10)
    assert not overlaps(room[:3], (room[3:],))
    assert not overlaps(room[:, :4], (room[:, 4:],))
    assert not overlaps(room[:, 4:], (room[:, :4],))
    assert not overlaps(room[::2], (room[1::2],))
    assert overlaps(room[:, :5], (room[:, 4:],))
    assert overlaps(room[:4], (room[3:],))
    assert overlaps(room, (room,))
    assert not overlaps(room, (room,), allow_same=True)
    assert overlaps(room[:3], (room[1:4],), allow_same=True)


shapes = st.lists(st.integers(1, 3), min_size=1, max_size=3)


@given(shapes, st.data())
def test_overlaps_itself_misses_no_coincidence(shape: list[int], data: Any) -> None:
    strides = [data.draw(st.integers(0, 9)) for _ in shape[1:]] + [1]
    x = torch.zeros(64).as_strided(shape, strides)
    if len(addresses(x)) < 4 * x.numel():
        assert overlaps_itself(x)


def test_overlaps_itself_takes_both_orders_of_batch_and_row() -> None:
    room = torch.zeros(4, 3, 5)
    for x in (room, room.transpose(0, 1), room[:, :, :2], room[::2], room[:0], room[0], room[0, 0]):
        assert not overlaps_itself(x)
    assert overlaps_itself(torch.zeros(5).expand(2, 5))


def test_ceil_div() -> None:
    assert [checks.ceil_div(size, 128) for size in (0, 1, 128, 129)] == [0, 1, 1, 2]
    assert [checks.ceil_div(size, block) for size, block in ((0, -1), (7, 0))] == [1, 1]


def test_the_variable_switches_the_checks_of_contents() -> None:
    code = "from mate_plugin.kernels.checks import index_checks_enabled as f; print(f())"
    env = {**os.environ, "MATE_PLUGIN_CHECK": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.stdout.strip() == "True", run.stderr
    values = ("1", "true", "0", "", "Off")
    assert [checks._means_on(value) for value in values] == [True, True, False, False, False]


def test_set_index_checks_returns_what_was() -> None:
    before = checks.set_index_checks(True)
    assert checks.index_checks_enabled()
    assert checks.set_index_checks(before) is True
    assert checks.index_checks_enabled() is before

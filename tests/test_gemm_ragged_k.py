"""Ragged-K grouped GEMMs against the float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemm_cases import (
    BF16,
    E4M3,
    E5M2,
    F32,
    FP8,
    FP16,
    NAN,
    Maker,
    assert_within,
    bits,
    cases,
    ceil_div,
    magnitude,
)
from hypothesis import given
from hypothesis import strategies as st

from mate_plugin.kernels import gemm
from mate_plugin.kernels.reference import gemm as reference


def operands(
    make: Maker, types: tuple[torch.dtype, torch.dtype], counts: list[int], m: int, n: int
) -> tuple[Any, Any]:
    """A and B with three rows (and one scale row) more than the counts need, which are NaN."""
    rows, blocks = sum(counts), sum(ceil_div(count, 128) for count in counts)
    pairs = []
    for dtype, width in zip(types, (m, n), strict=True):
        x = make.normal(rows + 3, width, dtype=dtype)
        if dtype not in FP8:
            x[rows:] = NAN
            pairs.append(x)
            continue
        x.view(torch.uint8)[rows:] = 0x7F
        scale = make.scale(blocks + 1, width)
        scale[blocks:] = NAN
        pairs.append((x, scale))
    return pairs[0], pairs[1]


def run(a: Any, b: Any, info: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    if isinstance(a, tuple):
        return gemm.ragged_k_moe_gemm_8bit(a, b, info, out)
    return gemm.ragged_k_moe_gemm_16bit(a, b, info, out)


sizes = st.sampled_from([0, 1, 3, 17, 64, 128, 129, 200])


@cases
@given(
    seed=st.integers(0, 2**31),
    counts=st.lists(st.sampled_from([0, 0, 1, 2, 127, 128, 129, 300]), max_size=5),
    m=sizes,
    n=sizes,
    types=st.sampled_from(
        [(E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3), (E5M2, E5M2), (BF16, BF16), (FP16, FP16)]
    ),
    strided=st.booleans(),
)
def test_oracle(
    seed: int,
    counts: list[int],
    m: int,
    n: int,
    types: tuple[torch.dtype, torch.dtype],
    strided: bool,
) -> None:
    make = Maker(seed, strided)
    a, b = operands(make, types, counts, m, n)
    info = torch.tensor(counts, dtype=torch.int32)
    out = make.normal(len(counts), m, n)
    before = out.clone()
    assert run(a, b, info, out) is out
    want = before.double() + reference.ragged_k(a, b, info)
    size = before.double().abs() + reference.ragged_k(magnitude(a), magnitude(b), info)
    assert_within(out, want, size, max(counts, default=0) + 1)
    for expert, count in enumerate(counts):
        if count == 0:
            assert torch.equal(bits(out[expert]), bits(before[expert]))


@pytest.mark.parametrize("types", [(E4M3, E5M2), (BF16, BF16)])
def test_an_element_alone_gives_the_same_bits(types: tuple[torch.dtype, torch.dtype]) -> None:
    make = Maker(4)
    counts = [130, 300]
    a, b = operands(make, types, counts, 150, 40)
    info = torch.tensor(counts, dtype=torch.int32)
    whole = run(a, b, info, torch.zeros(2, 150, 40))
    for size in (1, 2, 5, 9, 64):
        columns = slice(7, 7 + size)
        few = tuple(x[:, columns] for x in a) if isinstance(a, tuple) else a[:, columns]
        part = run(few, b, info, torch.zeros(2, size, 40))
        assert torch.equal(bits(part), bits(whole[:, columns]))


def test_nans_stay_in_their_expert_row_and_column() -> None:
    counts = [5, 140]
    a, b = operands(Maker(6), (E4M3, E4M3), counts, 30, 20)
    a[0].view(torch.uint8)[2, 11] = 0x7F
    b[0].view(torch.uint8)[100, 19] = 0xFF
    out = run(a, b, torch.tensor(counts, dtype=torch.int32), torch.zeros(2, 30, 20))
    want = torch.zeros(2, 30, 20, dtype=torch.bool)
    want[0, 11] = True
    want[1, :, 19] = True
    assert torch.equal(out.isnan(), want)


def test_accumulates_call_after_call() -> None:
    counts = [64, 100]
    a, b = operands(Maker(8), (BF16, BF16), counts, 12, 9)
    info = torch.tensor(counts, dtype=torch.int32)
    once = run(a, b, info, torch.zeros(2, 12, 9))
    twice = run(a, b, info, once.clone())
    torch.testing.assert_close(twice, 2 * once, rtol=1e-5, atol=1e-5)
    assert twice.dtype == F32

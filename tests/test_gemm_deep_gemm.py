"""GEMMs under the names of DeepGEMM against the float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemm_cases import BF16, E4M3, E5M2, F32, Maker, assert_close, assert_within, bits, magnitude

from mate_plugin.kernels import deep_gemm
from mate_plugin.kernels.checks import ceil_div
from mate_plugin.kernels.reference import gemm as reference

RECIPES = [None, (1, 128, 128), (1, 1, 128)]


def operands(*shape: int, gran_n: int = 128, seed: int = 1) -> tuple[Any, Any]:
    """A (..., M, K) and B (..., N, K) of the leading dimensions before (M, N, K)."""
    make = Maker(seed)
    *outer, m, n, k = shape
    kb = ceil_div(k, 128)
    a = make.normal(*outer, m, k, dtype=E4M3), make.scale(*outer, m, kb)
    b = make.normal(*outer, n, k, dtype=E5M2), make.scale(*outer, ceil_div(n, gran_n), kb)
    return a, b


def grouped(rows: int, groups: int, n: int, k: int, gran_n: int = 128) -> tuple[Any, Any]:
    a, _ = operands(rows, n, k)
    _, b = operands(groups, 1, n, k, gran_n=gran_n, seed=2)
    return a, b


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_fp8_gemm_nt(recipe: Any, dtype: torch.dtype) -> None:
    gran_n = recipe[1] if recipe else 128
    a, b = operands(40, 200, 300, gran_n=gran_n)
    d = torch.zeros(40, 200, dtype=dtype)
    assert deep_gemm.fp8_gemm_nt(a, b, d, recipe=recipe) is None
    assert_close(d, lambda x, y: reference.dense(x, y, (1, gran_n, 128)), a, b, 300)
    c = d.clone()
    halves = {"recipe_a": (1, 128), "recipe_b": (gran_n, 128)}
    deep_gemm.fp8_gemm_nt(a, b, d, d, **halves, disable_ue8m0_cast=True)
    want = reference.dense(a, b, (1, gran_n, 128)) + c.double()
    size = reference.dense(magnitude(a), magnitude(b), (1, gran_n, 128)) + c.double().abs()
    assert_within(d, want, size, 301)
    other = torch.zeros_like(d)
    deep_gemm.fp8_gemm_nt(a, b, other, c, recipe, compiled_dims="mnk")
    assert torch.equal(other, d)


@pytest.mark.parametrize("recipe", RECIPES)
def test_m_grouped_contiguous(recipe: Any) -> None:
    gran_n = recipe[1] if recipe else 128
    align = deep_gemm.get_mk_alignment_for_contiguous_layout()
    a, b = grouped(3 * align, 3, 70, 200, gran_n)
    experts = torch.tensor([0] * align + [-1] * align + [2] * align, dtype=torch.int32)
    d = torch.full((3 * align, 70), 5.0, dtype=BF16)
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(a, b, d, experts, recipe)
    owned = experts >= 0

    def product(x: Any, y: Any) -> torch.Tensor:
        return reference.ragged_m(x, y, experts, (1, gran_n, 128))[owned]

    assert_close(d[owned], product, a, b, 200)
    assert (d[~owned] == 5).all()
    ends = torch.tensor([align, align, 3 * align], dtype=torch.int32)
    filled = torch.zeros_like(d)
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(
        a, b, filled, ends, recipe, use_psum_layout=True, expected_m_for_psum_layout=64
    )
    assert torch.equal(filled[:align], d[:align])
    assert torch.equal(filled[2 * align :], d[2 * align :])


def test_m_grouped_masked() -> None:
    a, b = operands(2, 30, 70, 200)
    counts = torch.tensor([30, 4], dtype=torch.int32)
    used = torch.arange(30) < counts[:, None]
    d = torch.full((2, 30, 70), 5.0, dtype=F32)
    deep_gemm.m_grouped_fp8_gemm_nt_masked(a, b, d, counts, 17)
    assert_close(d[used], lambda x, y: reference.masked(x, y, counts)[used], a, b, 200)
    assert (d[~used] == 5).all()


@pytest.mark.parametrize("c", ["none", "other", "same"])
def test_k_grouped(c: str) -> None:
    make = Maker(3)
    ks = [130, 0, 256]
    rows, blocks = sum(ks), sum(ceil_div(k, 128) for k in ks)
    a = make.normal(rows, 20, dtype=E4M3), make.scale(blocks, 20)
    b = make.normal(rows, 33, dtype=E4M3), make.scale(blocks, 33)
    layout = torch.tensor(ks, dtype=torch.int32)
    d = make.normal(3, 20, 33)
    added = {"none": None, "other": make.normal(3, 20, 33), "same": d}[c]
    start = torch.zeros(3, 20, 33) if added is None else added.clone()
    deep_gemm.k_grouped_fp8_gemm_tn_contiguous(a, b, d, ks, layout, added)
    want = reference.ragged_k(a, b, layout) + start.double()
    size = reference.ragged_k(magnitude(a), magnitude(b), layout) + start.double().abs()
    assert_within(d, want, size, 257)


def test_ue8m0_cast_cannot_be_asked_for() -> None:
    a, b = operands(4, 8, 130)
    d = torch.full((4, 8), 2.0, dtype=BF16)
    before = bits(d)
    with pytest.raises(ValueError, match=r"disable_ue8m0_cast: expected True or None.*got bool F"):
        deep_gemm.fp8_gemm_nt(a, b, d, disable_ue8m0_cast=False)
    assert torch.equal(bits(d), before)

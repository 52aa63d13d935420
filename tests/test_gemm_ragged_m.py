"""Ragged-M grouped GEMMs against the float64 oracle."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from devices import on_cpu
from gemm_cases import (
    BF16,
    E4M3,
    E5M2,
    F32,
    FP8,
    FP16,
    NAN,
    Maker,
    assert_close,
    bits,
    cases,
    ceil_div,
)
from hypothesis import given
from hypothesis import strategies as st

from mate_plugin.kernels import gemm
from mate_plugin.kernels.reference import gemm as reference

GRANULARITIES = [(1, 128, 128), (1, 1, 128), (1, -1, -1), (-1, -1, -1)]
FUNCTIONS = {
    "8bit": gemm.ragged_m_moe_gemm_8bit,
    "w8a16": gemm.ragged_m_moe_gemm_w8a16,
    "16bit": gemm.ragged_m_moe_gemm_16bit,
}


def layout(make: Maker, mode: str, counts: list[int], align: int) -> torch.Tensor:
    """``ragged_tokens_info`` for the counts. per_token leaves rows out, and shuffles them where
    no alignment promises a GPU that the rows of an expert lie together."""
    if mode == "per_expert":
        return torch.tensor(counts, dtype=torch.int32)
    if mode == "psum_expert":
        ends, end = [], 0
        for count in counts:
            end = ceil_div(end, align) * align + count
            ends.append(end)
        return torch.tensor(ends, dtype=torch.int32)
    if align > 1 and not on_cpu():
        ids: list[int] = []
        for expert, count in enumerate(counts):
            ids += [-1] * (-len(ids) % align if count else 0) + [expert] * count
        return torch.tensor([*ids, -1, -1, -1], dtype=torch.int32)
    ids = [e for e, count in enumerate(counts) for _ in range(count)] + [-1] * 3
    order = torch.randperm(len(ids), generator=make.generator)
    return torch.tensor(ids, dtype=torch.int32)[order]


def rows_of(info: torch.Tensor, mode: str, counts: list[int]) -> int:
    if mode == "per_token":
        return info.numel()
    if mode == "per_expert":
        return sum(counts) + 2
    return max(info.tolist(), default=0) + 2


def operands(
    make: Maker, form: str, types: Any, shape: tuple[int, int, int, int], grain: tuple[int, ...]
) -> tuple[Any, Any]:
    """A and B (E, N, K) of one form, with scales where the form has them."""
    rows, experts, n, k = shape
    _, gran_n, gran_k = grain
    a_type, b_type = types
    a = make.normal(rows, k, dtype=a_type)
    b = make.normal(experts, n, k, dtype=b_type)
    if form == "16bit":
        return a, b
    per_tensor = grain[0] == -1
    nb, kb = ceil_div(n, gran_n), ceil_div(k, gran_k)
    sb = make.scale(1) if per_tensor else make.scale(experts, nb, kb)
    if form == "w8a16":
        return a, (b, sb)
    sa = make.scale(1) if per_tensor else make.scale(rows, kb)
    return (a, sa), (b, sb)


def as_n_major(b: Any) -> Any:
    def swap(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).contiguous() if x.dim() == 3 else x

    return (swap(b[0]), swap(b[1])) if isinstance(b, tuple) else swap(b)


def as_m_major(a: Any) -> Any:
    def stored(x: torch.Tensor) -> torch.Tensor:
        return x.t().contiguous().t() if x.dim() == 2 else x

    return (stored(a[0]), stored(a[1])) if isinstance(a, tuple) else stored(a)


def poison(a: Any, unowned: torch.Tensor) -> None:
    """Rows that no expert owns must never be read."""
    for x in a if isinstance(a, tuple) else (a,):
        if x.dim() == 2 and x.dtype in FP8:
            x.view(torch.uint8)[unowned] = 0x7F
        elif x.dim() == 2:
            x[unowned] = NAN


sizes = st.sampled_from([0, 1, 2, 5, 16, 31, 64, 127, 128, 129, 200, 257])


@cases
@given(
    seed=st.integers(0, 2**31),
    form=st.sampled_from(["8bit", "8bit", "w8a16", "16bit"]),
    mode=st.sampled_from(["per_token", "psum_expert", "per_expert"]),
    counts=st.lists(st.sampled_from([0, 0, 1, 1, 2, 5, 9, 40, 70]), max_size=6),
    n=sizes,
    k=sizes,
    grain=st.sampled_from(GRANULARITIES),
    align=st.sampled_from([1, 128, 256]),
    fp8=st.tuples(st.sampled_from(FP8), st.sampled_from(FP8)),
    wide=st.sampled_from([BF16, FP16, F32]),
    half=st.sampled_from([BF16, FP16]),
    a_major=st.sampled_from(["K", "M"]),
    b_major=st.sampled_from(["K", "N"]),
    strided=st.booleans(),
    num_mp=st.sampled_from([None, 1, 7]),
)
def test_oracle(
    seed: int,
    form: str,
    mode: str,
    counts: list[int],
    n: int,
    k: int,
    grain: tuple[int, int, int],
    align: int,
    fp8: Any,
    wide: torch.dtype,
    half: torch.dtype,
    a_major: str,
    b_major: str,
    strided: bool,
    num_mp: int | None,
) -> None:
    make = Maker(seed, strided)
    experts = len(counts)
    info = layout(make, mode, counts, align)
    rows = rows_of(info, mode, counts)
    types = {"8bit": fp8, "w8a16": (wide, fp8[1]), "16bit": (half, half)}[form]
    a, b = operands(make, form, types, (rows, experts, n, k), grain)
    owner = reference.expert_of_row(info, rows, mode, align)
    poison(a, owner < 0)
    out = make.out(rows, n, dtype=wide if form == "w8a16" else half)
    before = out.clone()
    options: dict[str, Any] = {} if form == "16bit" else {"scale_granularity_mnk": grain}
    result = FUNCTIONS[form](
        as_m_major(a) if a_major == "M" else a,
        as_n_major(b) if b_major == "N" else b,
        info,
        out,
        mode,
        a_major,
        b_major,
        num_mp=num_mp,
        alignment_m=align,
        **options,
    )
    assert result is out
    owned = owner >= 0
    assert torch.equal(bits(out[~owned]), bits(before[~owned]))

    def product(x: Any, y: Any) -> torch.Tensor:
        return reference.ragged_m(x, y, owner, grain)[owned]

    assert_close(out[owned], product, a, b, k)


@pytest.mark.parametrize("form", ["8bit", "w8a16", "16bit"])
@pytest.mark.parametrize(("n", "k"), [(200, 300), (128, 512), (33, 129)])
def test_a_row_alone_gives_the_same_bits_as_in_a_batch(form: str, n: int, k: int) -> None:
    make = Maker(3)
    rows = 150
    types = {"8bit": (E4M3, E5M2), "w8a16": (BF16, E4M3), "16bit": (BF16, BF16)}[form]
    a, b = operands(make, form, types, (rows, 2, n, k), (1, 128, 128))
    info = make.integers(0, 2, rows)
    run = functools.partial(FUNCTIONS[form], alignment_m=1)
    batch = run(a, b, info, torch.zeros(rows, n, dtype=BF16))
    for size in (1, 2, 3, 5, 8, 17, 64):
        part = slice(11, 11 + size)
        few = tuple(x[part] for x in a) if isinstance(a, tuple) else a[part]
        alone = run(few, b, info[part], torch.zeros(size, n, dtype=BF16))
        assert torch.equal(bits(alone), bits(batch[part])), f"{size} rows"


@pytest.mark.parametrize("a_type", FP8)
@pytest.mark.parametrize("b_type", FP8)
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_nans_stay_in_their_row_and_column(
    a_type: torch.dtype, b_type: torch.dtype, rows: int
) -> None:
    make = Maker(5)
    n, k = 150, 260
    nan_row, nan_column = rows - 1, 131
    a, b = operands(make, "8bit", (a_type, b_type), (rows, 2, n, k), (1, 128, 128))
    a[0][nan_row, 200] = torch.tensor(NAN).to(a_type)
    b[0][1, nan_column, 7] = torch.tensor(-NAN).to(b_type)
    info = (torch.arange(rows) % 2).to(torch.int32)
    out = gemm.ragged_m_moe_gemm_8bit(a, b, info, torch.zeros(rows, n, dtype=BF16))
    want = torch.zeros(rows, n, dtype=torch.bool)
    want[nan_row] = True
    want[info == 1, nan_column] = True
    assert torch.equal(out.isnan(), want)
    assert_close(out, lambda x, y: reference.ragged_m(x, y, info.long()), a, b, k)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_every_code_next_to_a_nan_code_is_exact(code: int) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    for fp8 in FP8:
        b = codes.view(fp8).clone().reshape(1, 256, 1)
        a = torch.ones(1, 1).to(fp8)
        info, one = torch.zeros(1, dtype=torch.int32), torch.ones(1)
        out = torch.zeros(1, 256, dtype=FP16)
        gemm.ragged_m_moe_gemm_8bit(
            (a, one), (b, one), info, out, scale_granularity_mnk=(-1, -1, -1)
        )
        want = codes.view(fp8).to(F32).to(FP16)
        assert torch.equal(out[0].isnan(), want.isnan())
        assert bool(out[0, code].isnan())
        finite = ~want.isnan()
        assert torch.equal(out[0][finite], want[finite])


def test_infinities_propagate() -> None:
    inf = float("inf")
    a = torch.tensor([[inf, 1.0], [inf, -inf], [-inf, 1.0], [2.0, 3.0]]).to(E5M2)
    b = torch.tensor([[[1.0, 1.0], [0.0, 1.0], [-2.0, 1.0]]]).to(E5M2)
    info = torch.zeros(4, dtype=torch.int32)
    ones = torch.ones(4, 1), torch.ones(1, 1, 1)
    out = torch.zeros(4, 3, dtype=FP16)
    gemm.ragged_m_moe_gemm_8bit((a, ones[0]), (b, ones[1]), info, out)
    want = [[inf, NAN, -inf], [NAN, NAN, -inf], [-inf, NAN, inf], [5.0, 3.0, -1.0]]
    want = torch.tensor(want).to(FP16)
    assert torch.equal(out.nan_to_num(nan=9), want.nan_to_num(nan=9))


@pytest.mark.parametrize("fp8", FP8)
def test_subnormals_count(fp8: torch.dtype) -> None:
    codes = torch.arange(1, 8 if fp8 == E4M3 else 4, dtype=torch.uint8)
    a = codes.view(fp8).clone().reshape(-1, 1)
    b = torch.ones(1, 1, 1).to(fp8)
    scale = torch.full((codes.numel(), 1), 2.0**10), torch.ones(1, 1, 1)
    info = torch.zeros(codes.numel(), dtype=torch.int32)
    out = torch.zeros(codes.numel(), 1, dtype=FP16)
    gemm.ragged_m_moe_gemm_8bit((a, scale[0]), (b, scale[1]), info, out)
    assert torch.equal(out[:, 0], (codes.view(fp8).to(F32) * 2.0**10).to(FP16))


def test_no_k_writes_zeros_in_owned_rows_only() -> None:
    a = torch.zeros(4, 0).to(E4M3), torch.zeros(4, 0)
    b = torch.zeros(2, 5, 0).to(E4M3), torch.zeros(2, 1, 0)
    out = torch.full((4, 5), 3.0, dtype=BF16)
    info = torch.tensor([0, -1, 1, -1], dtype=torch.int32)
    gemm.ragged_m_moe_gemm_8bit(a, b, info, out)
    assert out[:, 0].tolist() == [0.0, 3.0, 0.0, 3.0]


def test_scales_of_a_in_both_majors_and_one_per_expert() -> None:
    make = Maker(9)
    a, b = operands(make, "8bit", (E4M3, E4M3), (20, 3, 40, 300), (1, 128, 128))
    info = make.integers(0, 3, 20)
    first = gemm.ragged_m_moe_gemm_8bit(a, b, info, torch.zeros(20, 40, dtype=BF16))
    turned = (a[0], a[1].t().contiguous().t())
    second = gemm.ragged_m_moe_gemm_8bit(turned, b, info, torch.zeros(20, 40, dtype=BF16))
    assert torch.equal(first, second)
    scales = make.scale(1), make.scale(3, 1, 1)
    one, each = (a[0], scales[0]), (b[0], scales[1])
    out = torch.zeros(20, 40, dtype=FP16)
    gemm.ragged_m_moe_gemm_8bit(one, each, info, out, scale_granularity_mnk=(-1, -1, -1))
    broadcast = (1, -1, -1)
    assert_close(out, lambda x, y: reference.ragged_m(x, y, info.long(), broadcast), one, each, 300)


def test_strided_info_and_an_expanded_weight() -> None:
    make = Maker(11)
    a, b = operands(make, "8bit", (E4M3, E4M3), (12, 1, 24, 130), (1, 128, 128))
    shared = b[0].expand(3, 24, 130), b[1].expand(3, 1, 2)
    info = make.integers(-1, 3, 24)[::2]
    out = torch.zeros(12, 24, dtype=BF16)
    gemm.ragged_m_moe_gemm_8bit(a, shared, info, out)
    assert_close(out, lambda x, y: reference.ragged_m(x, y, info.long()), a, shared, 130)

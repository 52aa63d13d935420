"""FP8 quantisation by groups and SwiGLU, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import seeded
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from mate_plugin.kernels import quant
from mate_plugin.kernels.reference import pieces

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
WIDE = (torch.bfloat16, torch.float16, torch.float32)
quick = settings(max_examples=examples(60), deadline=None)


def strided(x: torch.Tensor, pad: int) -> torch.Tensor:
    """The same values in rows ``pad`` elements further apart."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + pad), float("nan"), dtype=x.dtype)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def assert_same_fp8(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal bits, except that one NaN is as good as another."""
    codes = [
        torch.where(x.float().isnan(), 0x7F, x.view(torch.uint8).int()) for x in (got, expected)
    ]
    torch.testing.assert_close(*codes, rtol=0, atol=0)


def assert_same_quantised(got: Any, expected: Any) -> None:
    assert_same_fp8(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1], rtol=0, atol=0, equal_nan=True)


@quick
@given(
    rows=st.integers(0, 9),
    cols=st.integers(0, 300),
    group=st.sampled_from([1, 3, 16, 17, 64, 128, 200, 512]),
    dtype=st.sampled_from(WIDE),
    code=st.sampled_from([E4M3, E5M2]),
    ue8m0=st.booleans(),
    major=st.sampled_from(["K", "MN"]),
    pad=st.sampled_from([0, 5]),
    exponent=st.integers(-20, 14),
    seed=st.integers(0, 1 << 16),
)
def test_quantises_to_the_bit(
    rows: int,
    cols: int,
    group: int,
    dtype: torch.dtype,
    code: torch.dtype,
    ue8m0: bool,
    major: str,
    pad: int,
    exponent: int,
    seed: int,
) -> None:
    generator = seeded(seed)
    x = (torch.randn(rows, cols, generator=generator) * 2.0**exponent).to(dtype)
    x = strided(x, pad)
    q, scale = quant.per_token_group_quant_fp8(x, group, code, ue8m0=ue8m0, scale_major=major)
    assert q.dtype == code
    assert scale.dtype == torch.float32
    if rows > 1 and scale.shape[1] > 1:
        assert scale.stride() == ((scale.shape[1], 1) if major == "K" else (1, rows))
    assert_same_quantised((q, scale), pieces.per_token_group_quant_fp8(x, group, code, ue8m0=ue8m0))


@pytest.mark.parametrize("code", [E4M3, E5M2])
def test_rounds_every_binade_to_nearest_even(code: torch.dtype) -> None:
    # A group that holds the largest value has scale 1, so that its codes are plain casts.
    largest = pieces.LARGEST[code]
    values = torch.arange(256, dtype=torch.uint8).view(code).float()
    values = values[values.isfinite()].sort().values
    ties = (values[1:] + values[:-1]) / 2
    near = torch.cat([values, ties])
    above, below = (torch.nextafter(near, torch.full_like(near, end)) for end in (1e9, -1e9))
    random = torch.randint(0, 2**31 - 1, (20000,), dtype=torch.int32).view(torch.float32)
    x = torch.cat([near, above, below, random[random.abs() <= largest], -torch.zeros(1)])
    x = x[x.abs() <= largest]
    x = torch.cat([torch.tensor([largest]), x])[None]
    q, scale = quant.per_token_group_quant_fp8(x, -1, code)
    assert scale.item() == 1.0
    assert_same_fp8(q, x.to(code))


def test_keeps_nan_and_infinity_in_their_group() -> None:
    x = torch.randn(4, 300)
    clean = quant.per_token_group_quant_fp8(x)
    dirty = x.clone()
    dirty[1, 130], dirty[2, 299], dirty[3, 0] = float("nan"), -float("nan"), float("inf")
    q, scale = quant.per_token_group_quant_fp8(dirty)
    assert_same_quantised((q, scale), pieces.per_token_group_quant_fp8(dirty))
    for row, group in ((1, 1), (2, 2)):
        columns = slice(group * 128, group * 128 + 128)
        assert q[row, columns].float().isnan().all()
        assert scale[row, group].isnan()
        q[row, columns], scale[row, group] = clean[0][row, columns], clean[1][row, group]
    assert q[3, 0].float().isnan()
    assert (q[3, 1:128].float() == 0).all()
    assert scale[3, 0] == float("inf")
    q[3, :128], scale[3, 0] = clean[0][3, :128], clean[1][3, 0]
    assert_same_quantised((q, scale), clean)


def test_tiny_and_huge_groups() -> None:
    x = torch.tensor([[0.0, -0.0], [1e-12, -3e-11], [1e-42, 0.0], [3e38, 1.0]])
    for ue8m0 in (False, True):
        got = quant.per_token_group_quant_fp8(x, ue8m0=ue8m0)
        assert_same_quantised(got, pieces.per_token_group_quant_fp8(x, ue8m0=ue8m0))
    powers = torch.tensor([[448.0], [448.1], [896.0], [447.9]])
    _, scale = quant.per_token_group_quant_fp8(powers, ue8m0=True)
    assert scale.flatten().tolist() == [1.0, 2.0, 2.0, 1.0]


@pytest.mark.parametrize("shape", [(300,), (2, 3, 300), (2, 0, 300), (1, 2, 2, 300)])
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float32).bfloat16()
    expected = pieces.per_token_group_quant_fp8(x)
    for major in ("K", "MN"):
        got = quant.per_token_group_quant_fp8(x, scale_major=major)
        assert got[0].shape == x.shape
        assert_same_quantised(got, expected)
    out = (torch.empty(shape, dtype=E4M3), torch.empty(*shape[:-1], 3))
    assert quant.per_token_group_quant_fp8(x, out=out) is out
    assert_same_quantised(out, expected)
    y = torch.empty(*shape[:-1], 150, dtype=torch.bfloat16)
    assert quant.silu_and_mul(x, y) is y
    assert quant.silu_and_mul(x).equal(y)


def test_writes_into_strided_outputs_and_nowhere_else() -> None:
    x = torch.randn(5, 200)
    q = torch.zeros(5, 210, dtype=torch.uint8)
    scale = torch.full((2, 7), -1.0)
    out = (q.view(E4M3)[:, 3:203], scale.t()[:5])
    quant.per_token_group_quant_fp8(x, scale_major="MN", out=out)
    assert_same_quantised(out, pieces.per_token_group_quant_fp8(x))
    assert (q[:, :3] == 0).all()
    assert (q[:, 203:] == 0).all()
    assert (scale[:, 5:] == -1).all()


@quick
@given(
    rows=st.integers(0, 7),
    cols=st.sampled_from([0, 1, 7, 16, 100, 1024, 1500]),
    dtype=st.sampled_from(WIDE),
    limit=st.sampled_from([None, 0.5, 7.0]),
    pad=st.sampled_from([0, 3]),
    seed=st.integers(0, 1 << 16),
)
def test_silu_and_mul(
    rows: int, cols: int, dtype: torch.dtype, limit: float | None, pad: int, seed: int
) -> None:
    generator = seeded(seed)
    x = strided((torch.randn(rows, 2 * cols, generator=generator) * 4).to(dtype), pad)
    expected = pieces.silu_and_mul(x, limit)
    out = strided(torch.empty(rows, cols, dtype=dtype), pad)
    assert quant.silu_and_mul(x, out, limit=limit) is out
    exact = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=4 * 2**-23 + exact / 2, atol=6e-8)
    assert quant.silu_and_mul(x, limit=limit).equal(out)


def test_silu_over_the_whole_range() -> None:
    gate = torch.cat([torch.linspace(-110, 110, 40001), torch.logspace(-45, 38, 500)])
    gate = torch.cat([gate, -gate, torch.tensor([0.0, -0.0, 3e38, -3e38, 1e-45])])
    out = quant.silu_and_mul(torch.stack([gate, torch.ones_like(gate)]).t().contiguous())
    expected = pieces.silu_and_mul(torch.stack([gate, torch.ones_like(gate)]).t())
    # The least normal number bounds what subnormal steps may lose.
    torch.testing.assert_close(out.double(), expected, rtol=4e-7, atol=2**-126)


def test_silu_special_values() -> None:
    inf, nan = float("inf"), float("nan")
    gate = torch.tensor([inf, -inf, nan, 1.0, 0.0, inf])
    up = torch.tensor([1.0, 1.0, 1.0, nan, inf, -inf])
    got = quant.silu_and_mul(torch.stack([gate, up], 1))
    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(got[:, 0], expected, equal_nan=True)
    cut = quant.silu_and_mul(torch.stack([gate, up], 1), limit=2.0)
    expected = pieces.silu_and_mul(torch.stack([gate, up], 1), 2.0).float()
    torch.testing.assert_close(cut, expected, equal_nan=True)
    x = torch.randn(3, 40)
    x[1, 3] = nan
    assert quant.silu_and_mul(x).isnan().nonzero().tolist() == [[1, 3]]


@quick
@given(
    rows=st.integers(0, 6),
    cols=st.sampled_from([1, 16, 127, 128, 300]),
    group=st.sampled_from([1, 32, 128]),
    dtype=st.sampled_from(WIDE),
    code=st.sampled_from([E4M3, E5M2]),
    limit=st.sampled_from([None, 1.5]),
    ue8m0=st.booleans(),
    seed=st.integers(0, 1 << 16),
)
def test_one_pass_equals_two(
    rows: int,
    cols: int,
    group: int,
    dtype: torch.dtype,
    code: torch.dtype,
    limit: float | None,
    ue8m0: bool,
    seed: int,
) -> None:
    generator = seeded(seed)
    x = (torch.randn(rows, 2 * cols, generator=generator) * 3).to(dtype)
    for round_first in (False, True):
        got = quant.silu_and_mul_quant_fp8(
            x, group, code, limit=limit, ue8m0=ue8m0, round_first=round_first, scale_major="MN"
        )
        product = quant.silu_and_mul(x if round_first else x.float(), limit=limit)
        expected = pieces.per_token_group_quant_fp8(product, group, code, ue8m0=ue8m0)
        assert_same_quantised(got, expected)


def test_many_rows_on_all_threads() -> None:
    x = torch.randn(2000, 512).bfloat16()
    assert_same_quantised(quant.per_token_group_quant_fp8(x), pieces.per_token_group_quant_fp8(x))
    expected = pieces.silu_and_mul(x)
    torch.testing.assert_close(
        quant.silu_and_mul(x).double(), expected, rtol=2**-8 + 1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            TypeError,
            "x: expected a torch.Tensor, got list",
            lambda x: quant.silu_and_mul(x.tolist()),
        ),
        (
            TypeError,
            "x: expected dtype torch.bfloat16 or torch.float16 or torch.float32, got torch.int32",
            lambda x: quant.per_token_group_quant_fp8(x.int()),
        ),
        (
            ValueError,
            r"x: expected K to be contiguous .* got strides \(1, 4\)",
            lambda x: quant.per_token_group_quant_fp8(x.t().contiguous().t()),
        ),
        (
            ValueError,
            r"x: expected \(\.\.\., 2 I\), an even number of columns, got \(4, 199\)",
            lambda x: quant.silu_and_mul(x[:, :199]),
        ),
        (
            ValueError,
            "group_size: expected at least 1, got 0",
            lambda x: quant.per_token_group_quant_fp8(x, 0),
        ),
        (
            TypeError,
            "dtype: expected torch.float8_e4m3fn or torch.float8_e5m2, got",
            lambda x: quant.per_token_group_quant_fp8(x, dtype=torch.int8),
        ),
        (
            ValueError,
            "scale_major: expected one of 'K', 'MN', got str 'N'",
            lambda x: quant.per_token_group_quant_fp8(x, scale_major="N"),
        ),
        (
            ValueError,
            r"limit: expected a number above 0 or None, got -1",
            lambda x: quant.silu_and_mul(x, limit=-1),
        ),
        (
            ValueError,
            r"out\[1\]: expected shape \(T, G\) = \(4, 2\), G = .* got \(4, 3\)",
            lambda x: quant.per_token_group_quant_fp8(
                x, out=(torch.empty(4, 200, dtype=E4M3), torch.empty(4, 3))
            ),
        ),
        (
            TypeError,
            r"out\[0\]: expected dtype torch.float8_e5m2, got torch.float8_e4m3fn",
            lambda x: quant.per_token_group_quant_fp8(
                x, dtype=E5M2, out=(torch.empty(4, 200, dtype=E4M3), torch.empty(4, 2))
            ),
        ),
        (
            ValueError,
            r"out\[1\].mT: expected T to be contiguous",
            lambda x: quant.per_token_group_quant_fp8(
                x,
                scale_major="MN",
                out=(torch.empty(4, 200, dtype=E4M3), torch.empty(4, 2)),
            ),
        ),
        (
            ValueError,
            "out: expected memory of its own, got a tensor that overlaps x",
            lambda x: quant.silu_and_mul(x, x[:, :100]),
        ),
        (
            ValueError,
            r"out: expected shape \(3, '\?'\) beside x \(3, 200\), got \(4, 100\)",
            lambda x: quant.silu_and_mul(x[:3], torch.empty(4, 100)),
        ),
    ],
)
def test_refuses(error: type[Exception], message: str, call: Any) -> None:
    x = torch.ones(4, 200)
    with pytest.raises(error, match=message):
        call(x)
    assert x.equal(torch.ones(4, 200))


def test_compiles_whole() -> None:
    @torch.compile(fullgraph=True, backend="eager", dynamic=True)
    def both(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, scale = quant.per_token_group_quant_fp8(x, scale_major="MN", ue8m0=True)
        fused = quant.silu_and_mul_quant_fp8(x, 64, limit=3.0)
        return q, scale, *fused, quant.silu_and_mul(x * 2)

    for rows in (3, 5, 1):
        x = torch.randn(rows, 256).bfloat16()
        got = both(x)
        assert_same_quantised(got[:2], pieces.per_token_group_quant_fp8(x, ue8m0=True))
        assert_same_quantised(got[2:4], quant.silu_and_mul_quant_fp8(x, 64, limit=3.0))
        assert got[4].equal(quant.silu_and_mul(x * 2))

"""Products over rows, operands of another order, outputs that are more than the product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import tensor_core_slack
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
    assert_within,
    bits,
    ceil_div,
    magnitude,
)
from gpu_contract import require_gpu
from gpu_layouts import BLOCKS, EXPERTS, ROWS, TENSOR, layout, operands, poison, served_by

from mate_plugin.kernels import gemm, library, select
from mate_plugin.kernels.reference import gemm as reference

require_gpu()

BEST = select.choose("ragged_k_gemm", "cuda").impl
LENGTHS = {
    "uneven": [1000, 0, 128, 77, 3, 384, 2049],
    "empty": [0, 0, 0],
    "one": [700],
    "many": [1, 130, 0, 64] * 20,
}


def sums_of_rows(make: Maker, lengths: list[int], m: int, n: int, types: Any) -> tuple[Any, Any]:
    """A and B with rows (and scales) after the last group that must not be read, which are NaN."""
    rows, blocks = sum(lengths), sum(ceil_div(length, 128) for length in lengths)
    pairs = []
    for dtype, width in zip(types, (m, n), strict=True):
        x = make.normal(rows + 5, width, dtype=dtype)
        poison(x, torch.arange(rows + 5) >= rows)
        scale = make.scale(blocks + 2, width)
        scale[blocks:] = NAN
        pairs.append((x, scale) if dtype in FP8 else x)
    return pairs[0], pairs[1]


def run_ragged_k(a: Any, b: Any, lengths: list[int], out: torch.Tensor) -> torch.Tensor:
    run = gemm.ragged_k_moe_gemm_8bit if isinstance(a, tuple) else gemm.ragged_k_moe_gemm_16bit
    return run(a, b, torch.tensor(lengths, dtype=torch.int32), out)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(
    "types",
    [(E4M3, E4M3), (E5M2, E4M3), (E4M3, E5M2), (E5M2, E5M2), (BF16, BF16), (FP16, FP16)],
)
@pytest.mark.parametrize(("m", "n"), [(400, 320), (64, 1040), (16, 16), (1312, 144)])
def test_ragged_k(lengths: list[int], types: Any, m: int, n: int) -> None:
    make = Maker(m + n)
    a, b = sums_of_rows(make, lengths, m, n, types)
    out = make.normal(len(lengths), m, n)
    before = out.clone()
    library.reset_counters()
    assert run_ragged_k(a, b, lengths, out) is out
    assert served_by("ragged_k_gemm") == {BEST}
    info = torch.tensor(lengths)
    want = before.double() + reference.ragged_k(a, b, info)
    size = before.double().abs() + reference.ragged_k(magnitude(a), magnitude(b), info)
    # Errors of the tensor cores do not average out in sums as short as some of these.
    assert_within(out, want, size * (4 if types[0] in FP8 else 1), max(lengths) + 1)
    for group, length in enumerate(lengths):
        if length == 0:
            assert torch.equal(bits(out[group]), bits(before[group]))


@pytest.mark.parametrize("types", [(E4M3, E4M3), (BF16, BF16)])
def test_ragged_k_keeps_nans_in_their_group(types: Any) -> None:
    lengths, m, n = [100, 60, 200], 160, 96
    a, b = sums_of_rows(Maker(1), lengths, m, n, types)
    x, y = (a[0], b[0]) if isinstance(a, tuple) else (a, b)
    for row, (tensor, column) in {100: (x, 11), 359: (y, 95)}.items():
        tensor[row, column] = torch.tensor(NAN).to(tensor.dtype)
    out = run_ragged_k(a, b, lengths, torch.zeros(3, m, n))
    want = torch.zeros(3, m, n, dtype=torch.bool)
    want[1, 11] = True
    want[2, :, 95] = True
    assert torch.equal(out.isnan(), want)


@pytest.mark.parametrize("types", [(E4M3, E4M3), (FP16, FP16)])
def test_ragged_k_of_wrong_contents_stays_inside(types: Any) -> None:
    a, b = sums_of_rows(Maker(2), [300, 200], 128, 128, types)
    out = torch.zeros(4, 128, 128)
    run_ragged_k(a, b, [-7, 300, 2**31 - 1, 100], out)
    assert torch.equal(out[0], torch.zeros(128, 128))
    want = torch.zeros(2, 128, 128)
    run_ragged_k(a, b, [300, 205], want)
    assert torch.equal(bits(out[1:3]), bits(want))
    assert torch.equal(out[3], torch.zeros(128, 128))


@pytest.mark.parametrize("mode", ["per_token", "psum_expert", "per_expert"])
@pytest.mark.parametrize(
    ("types", "grain"),
    [((E4M3, E4M3), BLOCKS), ((E5M2, E4M3), TENSOR), ((E4M3, E4M3), ROWS), ((BF16, BF16), None)],
)
@pytest.mark.parametrize(("n", "k"), [(1536, 1024), (720, 1040)])
def test_ragged_m_of_n_major_weights(mode: str, types: Any, grain: Any, n: int, k: int) -> None:
    make = Maker(n + k)
    counts = [300, 0, 1, 129, 64]
    info, rows = layout(mode, counts, 128)
    a, b = operands(make, (rows,), len(counts), n, k, types, grain)
    owned = reference.expert_of_row(info, rows, mode, 128) >= 0
    poison(a, ~owned)
    out = make.out(rows, n, dtype=BF16)
    before = out.clone()
    options = {} if grain is None else {"scale_granularity_mnk": grain}
    run = gemm.ragged_m_moe_gemm_16bit if grain is None else gemm.ragged_m_moe_gemm_8bit
    if grain is None:
        turned = b.transpose(1, 2).contiguous()
    else:
        scale = b[1] if grain == TENSOR else b[1].transpose(1, 2).contiguous()
        turned = b[0].transpose(1, 2).contiguous(), scale
    library.reset_counters()
    run(a, turned, info, out, mode, major_b_mode="N", alignment_m=128, **options)
    assert served_by("ragged_m_gemm") == {BEST}
    assert torch.equal(bits(out[~owned]), bits(before[~owned]))
    owner = reference.expert_of_row(info, rows, mode, 128)
    shape = grain or BLOCKS
    assert_close(out[owned], lambda x, y: reference.ragged_m(x, y, owner, shape)[owned], a, b, k)


@pytest.mark.parametrize(("n", "k"), [(256, 512), (200, 336)])
def test_ragged_m_of_m_major_rows(n: int, k: int) -> None:
    make, grain = Maker(n), BLOCKS
    info, rows = layout("psum_expert", [300, 0, 130], 128)
    rows += -rows % 16
    a, b = operands(make, (rows,), 3, n, k, (E4M3, E4M3), grain)
    owner = reference.expert_of_row(info, rows, "psum_expert", 128)
    owned = owner >= 0
    turned = a[0].t().contiguous().t(), a[1]
    out = make.out(rows, n, dtype=BF16)
    library.reset_counters()
    gemm.ragged_m_moe_gemm_8bit(turned, b, info, out, "psum_expert", major_a_mode="M")
    assert served_by("ragged_m_gemm") == {BEST}
    assert_close(out[owned], lambda x, y: reference.ragged_m(x, y, owner)[owned], a, b, k)


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 4096, 1024), (130, 720, 1040), (1000, 1536, 2048), (2100, 2304, 272)]
)
@pytest.mark.parametrize("types", [(E4M3, E4M3), (E4M3, E5M2)])
@pytest.mark.parametrize("grain", [BLOCKS, ROWS, TENSOR])
def test_output_with_scales(m: int, n: int, k: int, types: Any, grain: Any) -> None:
    make = Maker(m + k)
    a, b = operands(make, (m,), 1, n, k, types, grain)
    b = b[0][0], b[1] if grain == TENSOR else b[1][0]
    a[0][m // 2] = 0  # a row whose scale is 0
    scale = torch.full((m, ceil_div(n, 128)), NAN)
    library.reset_counters()
    out = gemm.gemm_fp8_nt_groupwise(
        a[0], b[0], a[1], b[1], scale_granularity_mnk=grain, output_scale=scale
    )
    assert served_by("batched_gemm") == {BEST}
    assert out.dtype == E4M3
    want = reference.dense(a, b, grain)
    # Errors of the tensor cores do not average out in sums as short as some of these.
    relative = k * 2**-24 + 4 * tensor_core_slack(out)
    slack = relative * reference.dense(magnitude(a), magnitude(b), grain)
    assert (
        (scale - reference.block_scales(want)).abs() <= reference.block_scales(slack) * 1.01
    ).all()
    assert (scale[m // 2] == 0).all()
    assert (out[m // 2].float() == 0).all()
    wide = scale.double().repeat_interleave(128, 1)[:, :n]
    got = out.float().double() * wide
    bound = slack + 2**-4 * want.abs() + wide * 2**-10
    assert ((got - want).abs() <= bound * 1.01).all()


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 64, 128), (130, 712, 1040), (300, 256, 512), (570, 1480, 192)]
)
@pytest.mark.parametrize("c_dtype", [None, BF16, FP16, F32, "out"])
@pytest.mark.parametrize("half", [BF16, FP16])
@pytest.mark.parametrize("out_dtype", [BF16, F32])
@pytest.mark.parametrize("k_major", [True, False])
def test_bmm_fp16(
    m: int, n: int, k: int, c_dtype: Any, half: Any, out_dtype: Any, k_major: bool
) -> None:
    make = Maker(m + n)
    a, b = make.normal(3, m, k, dtype=half), make.normal(3, k, n, dtype=half)
    if k_major:
        b = b.transpose(1, 2).contiguous().transpose(1, 2)
    out = make.normal(3, m, n, dtype=out_dtype)
    c = (
        out
        if c_dtype == "out"
        else None
        if c_dtype is None
        else make.normal(3, m, n, dtype=c_dtype)
    )
    added = torch.zeros(3, m, n).double() if c is None else c.double()
    library.reset_counters()
    gemm.bmm_fp16(a, b, out_dtype, out, c=c)
    assert served_by("batched_gemm") == {BEST}
    want = reference.dense(a, b.mT) + added
    size = reference.dense(magnitude(a), magnitude(b.mT)) + added.abs()
    assert_within(out, want, size, k + 1)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 64, 128), (130, 712, 1040), (300, 256, 512)])
@pytest.mark.parametrize("types", [(E4M3, E4M3), (E5M2, E4M3)])
@pytest.mark.parametrize("out_dtype", [BF16, FP16, E4M3])
@pytest.mark.parametrize("divisor", [3.7, 0.5, 1e-36])
def test_bmm_fp8_with_a_divisor(
    m: int, n: int, k: int, types: Any, out_dtype: Any, divisor: float
) -> None:
    make = Maker(m + n)
    a, b = make.normal(3, m, k, dtype=types[0]), make.normal(3, n, k, dtype=types[1])
    small = 1e-36 if divisor == 1e-36 else 1.0
    a_scale, b_scale = make.scale(1) * small, make.scale(1)
    library.reset_counters()
    out = gemm.bmm_fp8(a, b.mT, a_scale, b_scale, out_dtype, output_scale=torch.tensor(divisor))
    assert served_by("batched_gemm") == {BEST}
    by = float(torch.tensor(divisor))
    grain = (0, 0, 0)
    want = reference.dense((a, a_scale), (b, b_scale), grain) / by
    size = reference.dense(magnitude((a, a_scale)), magnitude((b, b_scale)), grain) / by
    if out_dtype == E4M3:
        want = want.clamp(-reference.FP8_MAX, reference.FP8_MAX)
    assert_within(out, want, size, k)


@pytest.mark.parametrize("half", [BF16, FP16])
@pytest.mark.parametrize("codes", [E4M3, E5M2])
@pytest.mark.parametrize("grain", [BLOCKS, EXPERTS, TENSOR])
@pytest.mark.parametrize(("n", "k"), [(1536, 1024), (720, 1040), (64, 64)])
@pytest.mark.parametrize("n_major", [False, True])
def test_ragged_m_of_wide_rows_and_fp8_weights(
    half: Any, codes: Any, grain: Any, n: int, k: int, n_major: bool
) -> None:
    make = Maker(n + k)
    info, rows = layout("psum_expert", [300, 0, 1, 129, 64], 128)
    (a, _), (b, scale) = operands(make, (rows,), 5, n, k, (E4M3, codes), grain)
    a = make.normal(rows, k, dtype=half)
    owner = reference.expert_of_row(info, rows, "psum_expert", 128)
    owned = owner >= 0
    poison(a, ~owned)
    out = make.out(rows, n, dtype=half)
    before = out.clone()
    weights = b, scale
    if n_major:
        turned = scale if scale.dim() == 1 else scale.transpose(1, 2).contiguous()
        weights = b.transpose(1, 2).contiguous(), turned
    library.reset_counters()
    gemm.ragged_m_moe_gemm_w8a16(
        a,
        weights,
        info,
        out,
        "psum_expert",
        major_b_mode="N" if n_major else "K",
        scale_granularity_mnk=grain,
        alignment_m=128,
    )
    assert served_by("ragged_m_gemm") == {BEST}
    assert torch.equal(bits(out[~owned]), bits(before[~owned]))
    want = lambda x, y: reference.ragged_m(x, y, owner, grain)[owned]  # noqa: E731
    assert_close(out[owned], want, a, (b, scale), k)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 4096, 1024), (130, 712, 1040), (1000, 1536, 2048)])
@pytest.mark.parametrize("out_dtype", [BF16, F32])
def test_dense_product_of_wide_rows_and_fp8_weights(m: int, n: int, k: int, out_dtype: Any) -> None:
    make = Maker(m)
    a, b = make.normal(m, k, dtype=BF16), make.normal(n, k, dtype=E4M3)
    scale = make.scale(ceil_div(n, 128), ceil_div(k, 128))
    library.reset_counters()
    out = gemm.gemm_w8a16_nt_groupwise(a, b, scale, out_dtype=out_dtype)
    assert served_by("batched_gemm") == {BEST}
    assert_close(out, lambda x, y: reference.dense(x, y, BLOCKS), a, (b, scale), k)


def test_masked_product_of_wide_rows_and_fp8_weights() -> None:
    make = Maker(3)
    counts, room, n, k = [0, 1, 20, 64, 65, 200], 200, 1536, 1024
    info = torch.tensor(counts, dtype=torch.int32)
    used = torch.arange(room) < info[:, None]
    a, b = make.normal(6, room, k, dtype=BF16), make.normal(6, n, k, dtype=E4M3)
    scale = make.scale(6, n // 128, k // 128)
    poison(a, ~used)
    out = make.out(6, room, n, dtype=BF16)
    before = out.clone()
    library.reset_counters()
    _, signal, block_m, threshold = gemm.masked_moe_gemm_w8a16(
        a, (b, scale), info, out, enable_overlap=True
    )
    assert served_by("masked_gemm") == {BEST}
    blocks = ceil_div(room, block_m)
    for expert, count in enumerate(counts):
        done = ceil_div(count, block_m)
        rises = signal[expert * blocks : (expert + 1) * blocks].tolist()
        assert rises == [threshold] * done + [0] * (blocks - done)
    assert torch.equal(bits(out[~used]), bits(before[~used]))
    assert_close(out[used], lambda x, y: reference.masked(x, y, info)[used], a, (b, scale), k)


# Blocks that have many tiles each: what they hand to the warp that stores stays in step.
@pytest.mark.parametrize("form", ["columns", "columns e5m2", "n-major", "wide rows"])
@pytest.mark.parametrize("n", [1536, 712])
def test_fewer_multiprocessors_give_the_same_bits(form: str, n: int) -> None:
    make, k = Maker(n), 1040
    info, rows = layout("psum_expert", [300, 0, 1, 129, 1000, 64], 128)
    types = {"columns e5m2": (E5M2, E4M3), "n-major": (BF16, BF16)}.get(form, (E4M3, E4M3))
    grain: Any = None if form == "n-major" else BLOCKS if form == "wide rows" else ROWS
    a, b = operands(make, (rows,), 6, n, k, types, grain)
    options: dict[str, Any] = {"alignment_m": 128}
    if form == "n-major":
        run, b = gemm.ragged_m_moe_gemm_16bit, b.transpose(1, 2).contiguous()
        options["major_b_mode"] = "N"
    elif form == "wide rows":
        run, a = gemm.ragged_m_moe_gemm_w8a16, make.normal(rows, k, dtype=BF16)
    else:
        run = gemm.ragged_m_moe_gemm_8bit
        options["scale_granularity_mnk"] = grain
    want = torch.zeros(rows, n, dtype=BF16)
    library.reset_counters()
    run(a, b, info, want, "psum_expert", **options)
    assert served_by("ragged_m_gemm") == {BEST}
    for num_mp in (1, 2, 7, 64):
        out = torch.zeros(rows, n, dtype=BF16)
        run(a, b, info, out, "psum_expert", num_mp=num_mp, **options)
        assert torch.equal(bits(out), bits(want)), num_mp


@pytest.mark.parametrize("types", [(E4M3, E4M3), (BF16, BF16)])
def test_ragged_k_on_fewer_multiprocessors_gives_the_same_bits(types: Any) -> None:
    lengths, m, n = LENGTHS["many"], 400, 336
    a, b = sums_of_rows(Maker(5), lengths, m, n, types)
    library.reset_counters()
    want = run_ragged_k(a, b, lengths, torch.zeros(len(lengths), m, n))
    assert served_by("ragged_k_gemm") == {BEST}
    info = torch.tensor(lengths, dtype=torch.int32)
    run = gemm.ragged_k_moe_gemm_8bit if isinstance(a, tuple) else gemm.ragged_k_moe_gemm_16bit
    for num_mp in (1, 2, 7):
        out = run(a, b, info, torch.zeros(len(lengths), m, n), num_mp=num_mp)
        assert torch.equal(bits(out), bits(want)), num_mp

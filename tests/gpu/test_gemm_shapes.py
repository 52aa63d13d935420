"""Grouped and dense products of many tiles, which the tests of the contract do not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemm_cases import (
    BF16,
    E4M3,
    E5M2,
    FP16,
    Maker,
    assert_close,
    bits,
    ceil_div,
)
from gpu_contract import require_gpu
from gpu_layouts import BLOCKS, EXPERTS, ROWS, TENSOR, layout, operands, poison, served_by

from mate_plugin.kernels import gemm, library, select
from mate_plugin.kernels.reference import gemm as reference

require_gpu()

BEST = select.choose("ragged_m_gemm", "cuda").impl
COUNTS = {
    "few": [1, 0, 3, 17, 64, 0, 5, 2],
    "uneven": [300, 0, 1, 129, 1000, 64, 0, 127],
    "one": [0, 0, 0, 1500, 0, 0, 0, 0],
}


@pytest.mark.parametrize("mode", ["per_token", "psum_expert", "per_expert"])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize(
    ("types", "grain"),
    [
        ((E4M3, E4M3), BLOCKS),
        ((E4M3, E5M2), BLOCKS),
        ((E5M2, E4M3), EXPERTS),
        ((E4M3, E4M3), EXPERTS),
        ((E4M3, E4M3), TENSOR),
        ((E4M3, E4M3), ROWS),
        ((E5M2, E4M3), ROWS),
        ((BF16, BF16), None),
        ((FP16, FP16), None),
    ],
)
@pytest.mark.parametrize(("n", "k"), [(1536, 2048), (712, 1040)])
def test_ragged_m(mode: str, counts: list[int], types: Any, grain: Any, n: int, k: int) -> None:
    make = Maker(n + len(mode))
    info, rows = layout(mode, counts, 128)
    a, b = operands(make, (rows,), len(counts), n, k, types, grain)
    owner = reference.expert_of_row(info, rows, mode, 128)
    owned = owner >= 0
    poison(a, ~owned)
    out = make.out(rows, n, dtype=BF16 if types[0] != FP16 else FP16)
    before = out.clone()
    options = {} if grain is None else {"scale_granularity_mnk": grain}
    run = gemm.ragged_m_moe_gemm_16bit if grain is None else gemm.ragged_m_moe_gemm_8bit
    library.reset_counters()
    run(a, b, info, out, mode, alignment_m=128, **options)
    assert served_by("ragged_m_gemm") == {BEST}
    assert torch.equal(bits(out[~owned]), bits(before[~owned]))
    shape = grain or BLOCKS
    assert_close(out[owned], lambda x, y: reference.ragged_m(x, y, owner, shape)[owned], a, b, k)


# The last ones are large enough for tiles that pairs of blocks multiply.
@pytest.mark.parametrize(
    ("room", "n", "k"),
    [
        *((room, *size) for room in (48, 64, 100, 1024) for size in ((1536, 2048), (712, 1040))),
        (800, 4096, 1040),
        (1024, 4096, 1040),
    ],
)
@pytest.mark.parametrize(
    ("types", "grain"),
    [
        ((E4M3, E4M3), BLOCKS),
        ((E5M2, E4M3), BLOCKS),
        ((E4M3, E4M3), ROWS),
        ((E4M3, E4M3), TENSOR),
        ((BF16, BF16), None),
    ],
)
def test_masked(room: int, types: Any, grain: Any, n: int, k: int) -> None:
    make = Maker(room + n)
    counts = [min(count, room) for count in (0, 1, 20, 64, 65, 500, 2000, 0)]
    info = torch.tensor(counts, dtype=torch.int32)
    used = torch.arange(room) < info[:, None]
    a, b = operands(make, (len(counts), room), len(counts), n, k, types, grain)
    poison(a, ~used)
    out = make.out(len(counts), room, n, dtype=BF16)
    before = out.clone()
    options = {} if grain is None else {"scale_granularity_mnk": grain}
    run = gemm.masked_moe_gemm_16bit if grain is None else gemm.masked_moe_gemm_8bit
    library.reset_counters()
    _, signal, block_m, threshold = run(a, b, info, out, enable_overlap=True, **options)
    assert served_by("masked_gemm") == {BEST}
    blocks = ceil_div(room, block_m)
    for expert, count in enumerate(counts):
        done = ceil_div(count, block_m)
        rises = signal[expert * blocks : (expert + 1) * blocks].tolist()
        assert rises == [threshold] * done + [0] * (blocks - done)
    assert torch.equal(bits(out[~used]), bits(before[~used]))
    shape = grain or BLOCKS
    assert_close(out[used], lambda x, y: reference.masked(x, y, info, shape)[used], a, b, k)


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (130, 712, 1040),
        (1000, 1536, 2048),
        (2304, 3328, 1040),
        (2112, 4224, 1040),
        # Few rows: tiles that the blocks of a cluster split along k, in parts of one size or not.
        *((m, 4096, 7168) for m in (1, 64, 128)),
        *((m, 2112, 2048) for m in (17, 65, 129)),
        (20, 333, 16384),
        (100, 333, 1536),
        (200, 7168, 528),
    ],
)
@pytest.mark.parametrize("types", [(E4M3, E4M3), (E5M2, E4M3)])
@pytest.mark.parametrize("grain", [BLOCKS, ROWS, EXPERTS, TENSOR])
@pytest.mark.parametrize("half", [BF16, FP16])
def test_dense(m: int, n: int, k: int, types: Any, grain: Any, half: torch.dtype) -> None:
    make = Maker(m)
    a, b = operands(make, (m,), 1, n, k, types, grain)
    b = b[0][0], b[1] if grain == TENSOR else b[1][0]
    library.reset_counters()
    out = gemm.gemm_fp8_nt_groupwise(
        a[0], b[0], a[1], b[1], out_dtype=half, scale_granularity_mnk=grain
    )
    assert served_by("batched_gemm") == {BEST}
    assert_close(out, lambda x, y: reference.dense(x, y, grain), a, b, k)


@pytest.mark.parametrize("types", [(E4M3, E4M3), (BF16, BF16)])
def test_fewer_multiprocessors_give_the_same_bits(types: Any) -> None:
    make = Maker(7)
    grain = BLOCKS if types[0] == E4M3 else None
    info, rows = layout("psum_expert", COUNTS["uneven"], 128)
    a, b = operands(make, (rows,), 8, 1536, 1024, types, grain)
    run = gemm.ragged_m_moe_gemm_16bit if grain is None else gemm.ragged_m_moe_gemm_8bit
    want = run(a, b, info, torch.zeros(rows, 1536, dtype=BF16), "psum_expert", alignment_m=128)
    for num_mp in (1, 2, 7, 100000):
        out = torch.zeros(rows, 1536, dtype=BF16)
        run(a, b, info, out, "psum_expert", num_mp=num_mp, alignment_m=128)
        assert torch.equal(out, want), num_mp

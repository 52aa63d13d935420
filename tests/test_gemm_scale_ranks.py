"""A scale of one element may have any rank."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gemm_cases import BF16, E4M3, Maker

from mate_plugin.kernels import gemm

WHOLE = (-1, -1, -1)
Call = Callable[[torch.Tensor], torch.Tensor]


def calls() -> dict[str, Call]:
    make = Maker(3)
    a, b = make.normal(5, 40, dtype=E4M3), make.normal(3, 24, 40, dtype=E4M3)
    batch, wide = make.normal(3, 5, 40, dtype=E4M3), make.normal(5, 40, dtype=BF16)
    experts = torch.tensor([0, 2, 1, 0, 2], dtype=torch.int32)
    counts = torch.tensor([5, 0, 3], dtype=torch.int32)
    options = {"scale_granularity_mnk": WHOLE}
    return {
        "ragged_m": lambda s: gemm.ragged_m_moe_gemm_8bit(
            (a, s), (b, s), experts, torch.zeros(5, 24, dtype=BF16), **options
        ),
        "ragged_m_w8a16": lambda s: gemm.ragged_m_moe_gemm_w8a16(
            wide, (b, s), experts, torch.zeros(5, 24, dtype=BF16), **options
        ),
        "masked": lambda s: gemm.masked_moe_gemm_8bit(
            (batch, s), (b, s), counts, torch.zeros(3, 5, 24, dtype=BF16), **options
        ),
        "groupwise": lambda s: gemm.gemm_fp8_nt_groupwise(a, b[0], s, s, **options),
        "groupwise_mn": lambda s: gemm.gemm_fp8_nt_groupwise(a, b[0], s, s, "MN", **options),
        "groupwise_w8a16": lambda s: gemm.gemm_w8a16_nt_groupwise(wide, b[0], s, **options),
        "bmm": lambda s: gemm.bmm_fp8(batch, b.transpose(1, 2), s, s, BF16),
    }


@pytest.mark.parametrize("name", calls())
def test_any_rank_gives_the_same_bits(name: str) -> None:
    call = calls()[name]
    scale = torch.tensor(1.5)
    expected = call(scale)
    assert expected.count_nonzero()
    assert not torch.equal(expected, call(torch.ones(1)))
    # Grouped GEMMs take three dimensions as one scale per expert.
    for rank in (1, 2, 4) if name.startswith(("ragged", "masked")) else (1, 2, 3, 4):
        assert torch.equal(call(scale.reshape((1,) * rank)), expected)
    assert torch.equal(call(torch.full((7, 9), 1.5)[3:4, 2:3]), expected)

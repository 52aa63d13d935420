"""What gpu_tilelang.py measures: cases of gpu.py with a reference beside them, and tiles to try."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gpu_gemm
import torch
from gpu_timing import Named

from mate_plugin.kernels.reference import gemm as oracle
from mate_plugin.kernels.tilelang.grouped import NARROW, WIDE
from mate_plugin.kernels.tilelang.grouped_program import Tile

N, K = 4096, 7168
CONTIGUOUS = ((4, 8192), (8, 1024), (32, 256))  # experts, rows of each, about
MASKED = (32, 64)  # experts, rows of each
USUAL = (WIDE, NARROW)
# What a sweep tries.
TILES = (
    *USUAL,
    Tile(128, 128, 256, 3),
    Tile(128, 64, 256, 5),
    Tile(64, 128, 128, 4),
    Tile(64, 64, 128, 8),
)


class Reference:
    """The functions of DeepGEMM that the cases call, in float64, rounded to the type of ``out``."""

    def m_grouped_fp8_gemm_nt_contiguous(self, a: Any, b: Any, out: torch.Tensor, ids: Any) -> None:
        out.copy_(oracle.ragged_m(a, b, ids.long()))

    def m_grouped_fp8_gemm_nt_masked(
        self, a: Any, b: Any, out: torch.Tensor, counts: Any, _expected: int
    ) -> None:
        out.copy_(oracle.masked(a, b, counts))


def cases() -> Iterator[Named]:
    """All sizes; the peer of each is the reference."""
    for experts, rows in CONTIGUOUS:
        name = f"contiguous {experts} x ~{rows} n {N} k {K}"
        yield name, partial(gpu_gemm.contiguous, experts, rows, N, K, Reference())
    experts, rows = MASKED
    name = f"masked {experts} x ~{rows} (max {rows}) n {N} k {K}"
    yield name, partial(gpu_gemm.masked, experts, rows, rows, N, K, Reference())

"""TileLang's kernels as the peer in the cases of gpu.py, and the reference to check them by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gpu_gemm
import gpu_indexer
import torch
from gpu_timing import Case, Named, cosine_distance

from mate_plugin.kernels.reference import gemm as gemm_oracle
from mate_plugin.kernels.reference import indexer as indexer_oracle
from mate_plugin.kernels.tilelang import grouped, logits
from mate_plugin.kernels.tilelang.grouped_program import Tile
from mate_plugin.kernels.tilelang.logits_program import Split

N, K, HEADS = 4096, 7168, 64
CONTIGUOUS = ((4, 8192), (8, 1024), (32, 256))  # experts, rows of each, about
MASKED = (32, 64)  # experts, rows of each
PAGED = ((8, 8192), (8, 65536), (64, 8192), (64, 65536))  # requests, context, about
# Sums of FP8 products on the tensor cores keep about 14 bits, results are rounded to bf16.
APART = 1e-3
# What a sweep tries.
TILES = (
    grouped.WIDE,
    Tile(128, 128, 256, 3),
    Tile(128, 64, 256, 5),
    grouped.NARROW,
    Tile(64, 128, 128, 4),
    Tile(64, 64, 128, 8),
)
SPLITS = (logits.SPLIT, Split(512, 128, 3), Split(1024, 128, 6), Split(2048, 128, 4))


class TileLang:
    """The functions of DeepGEMM that the cases of gpu.py call, by TileLang.

    ``tile`` and ``split`` replace the usual choice; ``expected`` computes in float64 what the last
    call should have written, and returns both.
    """

    def __init__(self) -> None:
        self.tile: Tile | None = None
        self.split = logits.SPLIT
        self.expected: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None

    def m_grouped_fp8_gemm_nt_contiguous(self, a: Any, b: Any, out: Any, ids: Any) -> None:
        grouped.ragged_m_gemm(a, b, ids, out, tile=self.tile)
        self.expected = lambda: (
            out[ids >= 0],
            gemm_oracle.ragged_m(a, b, ids.long())[ids >= 0],
        )

    def m_grouped_fp8_gemm_nt_masked(
        self, a: Any, b: Any, out: Any, info: Any, expected: int
    ) -> None:
        grouped.masked_gemm(a, b, info, out, expected, tile=self.tile)
        used = torch.arange(out.shape[1], device=out.device) < info[:, None]
        self.expected = lambda: (out[used], gemm_oracle.masked(a, b, info)[used])

    def get_paged_mqa_logits_metadata(self, *_: Any) -> None:
        """TileLang's kernel splits the work by itself."""

    def fp8_paged_mqa_logits(
        self,
        q: Any,
        cache: Any,
        weights: Any,
        lens: Any,
        table: Any,
        _: None,
        most: int,
        clean: bool,
    ) -> torch.Tensor:
        out = torch.empty(len(weights), most, device=q.device)
        logits.fp8_paged_mqa_logits(q, cache, weights, lens, table, out, clean, self.split)

        def expected() -> tuple[torch.Tensor, torch.Tensor]:
            wanted = indexer_oracle.paged_mqa_logits(q, cache, weights, lens, table, most)
            return out[wanted.isfinite()], wanted[wanted.isfinite()]

        self.expected = expected
        return out


def cases(peer: TileLang) -> Iterator[Named]:
    """All sizes, TileLang as the peer of ours."""
    for experts, rows in CONTIGUOUS:
        name = f"contiguous {experts} x ~{rows} n {N} k {K}"
        yield name, partial(gpu_gemm.contiguous, experts, rows, N, K, peer)
    experts, rows = MASKED
    name = f"masked {experts} x ~{rows} (max {rows}) n {N} k {K}"
    yield name, partial(gpu_gemm.masked, experts, rows, rows, N, K, peer)
    for batch, context in PAGED:
        name = f"paged {batch} ctx ~{context} H{HEADS}"
        yield name, partial(gpu_indexer.paged, batch, 1, context, peer, HEADS)


def distance(peer: TileLang, case: Case) -> float:
    """1 - cosine of TileLang's result and the reference."""
    assert case.peer is not None
    case.peer()
    assert peer.expected is not None
    with torch.device("cuda"):
        return cosine_distance(*peer.expected())

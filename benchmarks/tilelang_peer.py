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
    """The functions of DeepGEMM that the cases of gpu.py call, by TileLang; one for each case.

    ``tile`` and ``split`` replace the usual choice. While ``checking``, a call writes over what
    earlier ones left, and ``expected`` gives what it wrote and what float64 makes of it.
    """

    def __init__(self) -> None:
        self.tile: Tile | None = None
        self.split = logits.SPLIT
        self.checking = False
        self.expected: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None
        self._reference: torch.Tensor | None = None

    def _forget(self, out: torch.Tensor) -> None:
        if self.checking:
            out.fill_(float("nan"))

    def _once(self, reference: Callable[[], torch.Tensor]) -> torch.Tensor:
        if self._reference is None:
            self._reference = reference()
        return self._reference

    def m_grouped_fp8_gemm_nt_contiguous(self, a: Any, b: Any, out: Any, ids: Any) -> None:
        self._forget(out)
        grouped.ragged_m_gemm(a, b, ids, out, tile=self.tile)
        self.expected = lambda: (
            out[ids >= 0],
            self._once(lambda: gemm_oracle.ragged_m(a, b, ids.long())[ids >= 0]),
        )

    def m_grouped_fp8_gemm_nt_masked(
        self, a: Any, b: Any, out: Any, info: Any, expected: int
    ) -> None:
        self._forget(out)
        grouped.masked_gemm(a, b, info, out, expected, tile=self.tile)

        def both() -> tuple[torch.Tensor, torch.Tensor]:
            used = torch.arange(out.shape[1], device=out.device) < info[:, None]
            return out[used], self._once(lambda: gemm_oracle.masked(a, b, info)[used])

        self.expected = both

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
        self._forget(out)
        logits.fp8_paged_mqa_logits(q, cache, weights, lens, table, out, clean, self.split)

        def both() -> tuple[torch.Tensor, torch.Tensor]:
            wanted = self._once(
                lambda: indexer_oracle.paged_mqa_logits(q, cache, weights, lens, table, most)
            )
            return out[wanted.isfinite()], wanted[wanted.isfinite()]

        self.expected = both
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
    """1 - cosine of TileLang's result and the reference; infinite where it wrote no numbers."""
    assert case.peer is not None
    peer.checking = True
    case.peer()
    peer.checking = False
    assert peer.expected is not None
    with torch.device("cuda"):
        result, reference = peer.expected()
        # The data are finite, and a cosine of NaN would be none.
        return cosine_distance(result, reference) if result.isfinite().all() else float("inf")

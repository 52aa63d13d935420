"""Ragged indexer batches and what must be selected from them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from devices import seeded
from indexer_cases import fuse_cache

from mate_plugin.kernels.index_topk import index_topk
from mate_plugin.kernels.mqa_logits import fp8_paged_mqa_logits, get_paged_mqa_logits_metadata
from mate_plugin.kernels.reference import indexer as oracle

UNLIMITED = 1 << 40


def least_budget(k: int, block: int) -> int:
    return 4 * (k + 4 * block)


@dataclass
class RaggedCase:
    """Tensor arguments of ``index_topk``."""

    q: torch.Tensor
    cache: torch.Tensor
    weights: torch.Tensor
    query_start_loc: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (
            self.q,
            self.cache,
            self.weights,
            self.query_start_loc,
            self.context_lens,
            self.block_table,
        )

    def run(self, k: int, budget: int = UNLIMITED, **options: object) -> torch.Tensor:
        return index_topk(*self.tensors(), k, budget=budget, **options)

    def exact_logits(self) -> list[torch.Tensor]:
        """The logits each row sees, float64."""
        return oracle.ragged_logits(*self.tensors())

    def kernel_logits(self) -> list[torch.Tensor]:
        """The same as ``fp8_paged_mqa_logits`` computes them, request by request."""
        starts, lens = self.query_start_loc.tolist(), self.context_lens.tolist()
        rows = [torch.empty(0)] * self.q.shape[0]
        for b, length in enumerate(lens):
            first, end = starts[b], starts[b + 1]
            if first == end or length <= 0:
                continue
            request = self.context_lens[b : b + 1]
            plan = get_paged_mqa_logits_metadata(request, self.cache.shape[1], 1)
            logits = fp8_paged_mqa_logits(
                self.q[None, first:end],
                self.cache,
                self.weights[first:end],
                request,
                self.block_table[b : b + 1],
                plan,
                length,
                True,
            )
            for row in range(first, end):
                rows[row] = logits[row - first, : max(0, length - end + row + 1)]
        return rows


def ragged_case(
    seed: int,
    requests: list[tuple[int, int]],
    heads: int = 4,
    depth: int = 32,
    block: int = 64,
    dtype: torch.dtype = torch.float8_e4m3fn,
    exact: bool = False,
    padding: int = 0,
) -> RaggedCase:
    """``requests`` are (query rows, tokens). Small whole numbers where every sum must be exact."""
    g = seeded(seed)

    def numbers(*shape: int) -> torch.Tensor:
        if exact:
            return torch.randint(-2, 3, shape, generator=g).float()
        return torch.randn(*shape, generator=g)

    counts = [-(-max(length, 0) // block) for _, length in requests]
    num_blocks, width = sum(counts) + 1, max(counts, default=0) + 1
    order = torch.randperm(num_blocks, generator=g).to(torch.int32)
    block_table = torch.full((len(requests), width), -1, dtype=torch.int32)
    for b, end in enumerate(accumulate(counts)):
        block_table[b, : counts[b]] = order[end - counts[b] : end]
    scales = torch.rand(num_blocks, block, generator=g) + 0.01
    if exact:
        scales = 2.0 ** torch.randint(-1, 2, (num_blocks, block), generator=g)
    rows = sum(count for count, _ in requests) + padding
    codes = numbers(num_blocks, block, depth).to(torch.float8_e4m3fn)
    starts = [0, *accumulate(count for count, _ in requests)]
    return RaggedCase(
        numbers(rows, heads, depth).to(dtype),
        fuse_cache(codes, scales),
        numbers(rows, heads),
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor([length for _, length in requests], dtype=torch.int32),
        block_table,
    )

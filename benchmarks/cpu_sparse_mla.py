"""Attention over selected rows of a latent cache on a CPU, beside the same by torch.

    python benchmarks/cpu_sparse_mla.py

Counts 2 * H * n * (D + value_dim) floating-point operations a token. Medians on random data.
"""

from __future__ import annotations

from functools import partial

import torch
import typer
from rich.console import Console
from rich.table import Table
from timing import Budget, Seed, Threads, median_seconds, prepare

from mate_plugin.kernels import ceilings
from mate_plugin.kernels.sparse_mla import sparse_mla

DEPTH, VALUE_DIM, BLOCK, REQUESTS = 576, 512, 64, 4
# (tokens, heads, selections, context)
DECODE = (
    (1, 16, 2048, 2048),
    (1, 16, 2048, 8192),
    (1, 16, 2048, 32768),
    (16, 16, 2048, 32768),
    (16, 16, 512, 32768),
    (16, 128, 2048, 32768),
    (16, 8, 2048, 32768),
    (16, 4, 2048, 32768),
    (16, 1, 2048, 32768),
)
PREFILL = (
    (512, 16, 512, 2048),
    (512, 16, 512, 32768),
    (256, 16, 2048, 2048),
    (256, 16, 2048, 32768),
    (32, 128, 2048, 32768),
)


def by_torch(
    q: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, scale: float
) -> torch.Tensor:
    """The same by torch, token by token: gather, float32 products, softmax."""
    out = torch.empty(*q.shape[:2], VALUE_DIM, dtype=q.dtype)
    for token in range(q.shape[0]):
        kv = rows.index_select(0, slots[token]).float()
        weights = torch.softmax(q[token].float() @ kv.t() * scale, dim=-1)
        out[token] = weights @ kv[:, :VALUE_DIM]
    return out


def measure(shapes: tuple[tuple[int, int, int, int], ...], budget: float, peak: float) -> Table:
    """GFLOP/s of each shape beside torch's time."""
    table = Table("tokens, H, K, context", "ms", "GFLOP/s", "of peak", "torch, ms", "ratio")
    for tokens, heads, count, context in shapes:
        blocks = context // BLOCK
        cache = torch.randn(REQUESTS * blocks, BLOCK, DEPTH, dtype=torch.bfloat16)
        block_table = torch.randperm(REQUESTS * blocks, dtype=torch.int32).view(REQUESTS, blocks)
        request = torch.arange(tokens, dtype=torch.int32) % REQUESTS
        picks = [torch.randperm(context)[:count].sort().values for _ in range(tokens)]
        indices = torch.stack(picks).int()
        q = torch.randn(tokens, heads, DEPTH, dtype=torch.bfloat16)
        scale = DEPTH**-0.5
        block_of = block_table.long()[request.long()].gather(1, indices.long() // BLOCK)
        slots = block_of * BLOCK + indices % BLOCK
        out = torch.empty(tokens, heads, VALUE_DIM, dtype=torch.bfloat16)

        attend = partial(
            sparse_mla, q, cache, indices, block_table, request, VALUE_DIM, scale, out=out
        )
        mine = median_seconds(attend, budget)
        theirs = median_seconds(partial(by_torch, q, cache.flatten(0, 1), slots, scale), budget)
        rate = 2.0 * tokens * heads * count * (DEPTH + VALUE_DIM) / mine / 1e9
        table.add_row(
            f"{tokens}, {heads}, {count}, {context}", f"{mine * 1e3:.2f}", f"{rate:.0f}",
            f"{rate / peak:.0%}", f"{theirs * 1e3:.1f}", f"{theirs / mine:.1f}",
        )  # fmt: skip
    return table


def main(
    threads: Threads = 0,
    budget: Budget = 0.5,
    seed: Seed = 0,
) -> None:
    """Print a table for decode and one for prefill."""
    setting = prepare(threads, seed)
    console, peak = Console(), ceilings.fma_peak()
    console.print(
        f"{setting}: {peak:.0f} GFLOP/s of multiply-adds; D {DEPTH}, value {VALUE_DIM}, bfloat16"
    )
    console.print(measure(DECODE, budget, peak))
    console.print(measure(PREFILL, budget, peak))


if __name__ == "__main__":
    typer.run(main)

"""The lightning indexer on a CPU: scores, top-k, and both in one call.

    python benchmarks/cpu_indexer.py
    python benchmarks/cpu_indexer.py --part topk --part fused

Scores count multiply-adds and stand beside the machine's peak and beside torch working from the
same paged cache; top-k counts bytes of logits read and stands beside reads of memory and
torch.topk. Medians on random data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from timing import Budget, Seed, Threads, median_seconds, prepare

from mate_plugin.kernels import ceilings, deep_gemm, index_topk, topk

HEADS, DIM, BLOCK, TOPK = 64, 128, 64, 2048
TORCH_TOKENS = 2048  # that torch scores at a time
# (batch, next_n, context)
SCORES = (
    (1, 1, 1024), (8, 1, 1024), (8, 2, 1024), (1, 1, 8192), (1, 2, 8192), (1, 4, 8192),
    (1, 1, 32768), (4, 2, 32768), (1, 1, 131072), (1, 2, 131072), (1, 4, 131072),
)  # fmt: skip
# (rows, columns, k)
TOPKS = (
    (1, 131072, 2048), (8, 131072, 2048), (1, 32768, 2048), (1, 32768, 512), (1, 8192, 512),
    (256, 8192, 2048), (256, 8192, 512),
)  # fmt: skip
# What is selected, (requests, query rows of each, context), bytes of budget.
FUSED = (
    ("decode", (8, 1, 32768), 512 << 20),
    ("decode", (1, 1, 131072), 512 << 20),
    ("decode, small budget", (1, 1, 131072), 64 << 10),
    ("mixed speculative", (32, 2, 4096), 512 << 20),
    ("prefill", (1, 4096, 32768), 512 << 20),
    ("prefill, small budget", (1, 4096, 32768), 1 << 20),
)


@dataclass(frozen=True)
class Machine:
    """What can be reached at most: GFLOP/s of multiply-adds, GB/s of reads."""

    peak: float
    bandwidth: float


@dataclass(frozen=True)
class Batch:
    """Requests of equal lengths with a paged cache, its blocks in random order."""

    q: torch.Tensor  # (batch, next_n, heads, D)
    cache: torch.Tensor
    weights: torch.Tensor  # (batch * next_n, heads)
    lens: torch.Tensor
    blocks: torch.Tensor


def batch_of(requests: int, rows: int, context: int) -> Batch:
    num_blocks = context // BLOCK
    total = requests * num_blocks
    coded = torch.randn(total, BLOCK * DIM).to(torch.float8_e4m3fn).view(torch.uint8)
    scaled = (torch.rand(total, BLOCK) + 0.5).view(torch.uint8)
    return Batch(
        torch.randn(requests, rows, HEADS, DIM).to(torch.float8_e4m3fn),
        torch.cat([coded, scaled], 1).view(total, BLOCK, 1, DIM + 4),
        torch.randn(requests * rows, HEADS),
        torch.full((requests,), context, dtype=torch.int32),
        torch.randperm(total).to(torch.int32).view(requests, num_blocks),
    )


def by_torch(x: Batch, out: torch.Tensor) -> None:
    """The same scores by torch: gather blocks, decode, multiply, relu, weighted sum."""
    requests, rows = x.q.shape[:2]
    flat = x.cache.view(x.cache.shape[0], -1)
    weights, logits = x.weights.view(requests, rows, HEADS), out.view(requests, rows, -1)
    step = TORCH_TOKENS // BLOCK
    for b in range(requests):
        q = x.q[b].float()
        for first in range(0, x.blocks.shape[1], step):
            taken = flat[x.blocks[b, first : first + step].long()]
            codes = taken[:, : BLOCK * DIM].contiguous().view(torch.float8_e4m3fn)
            scale = taken[:, BLOCK * DIM :].contiguous().view(torch.float32).flatten()
            products = torch.einsum("jhd,td->jht", q, codes.view(-1, DIM).float()).relu_()
            part = torch.einsum("jht,jh->jt", products, weights[b]) * scale
            logits[b, :, first * BLOCK : first * BLOCK + part.shape[1]] = part


def scores(budget: float, machine: Machine) -> Table:
    """GFLOP/s of the paged scores."""
    table = Table("batch, next_n, context", "ms", "GFLOP/s", "of peak", "torch, ms", "ratio")
    for requests, rows, context in SCORES:
        x = batch_of(requests, rows, context)
        out = torch.empty(requests * rows, context)
        plan = deep_gemm.get_paged_mqa_logits_metadata(x.lens, BLOCK)
        paged = (x.q, x.cache, x.weights, x.lens, x.blocks, plan, context, False)
        mine = median_seconds(partial(deep_gemm.fp8_paged_mqa_logits, *paged, out=out), budget)
        theirs = median_seconds(partial(by_torch, x, out), budget)
        rate = 2.0 * requests * rows * HEADS * DIM * context / mine / 1e9
        table.add_row(
            f"{requests}, {rows}, {context}", f"{mine * 1e3:.2f}", f"{rate:.0f}",
            f"{rate / machine.peak:.0%}", f"{theirs * 1e3:.1f}", f"{theirs / mine:.1f}",
        )  # fmt: skip
    return table


def selections(budget: float, machine: Machine) -> Table:
    """GB/s of logits that top-k reads."""
    table = Table("rows, columns, k", "us", "GB/s", "of reads", "torch, us", "ratio")
    for rows, columns, k in TOPKS:
        logits = torch.randn(rows, columns)
        lengths = torch.full((rows,), columns, dtype=torch.int32)
        out = torch.empty(rows, k, dtype=torch.int32)
        mine = median_seconds(partial(topk.top_k, logits, lengths, k, out=out), budget)
        theirs = median_seconds(partial(torch.topk, logits, k, dim=1), budget)
        rate = logits.nbytes / mine / 1e9
        table.add_row(
            f"{rows}, {columns}, {k}", f"{mine * 1e6:.0f}", f"{rate:.1f}",
            f"{rate / machine.bandwidth:.0%}", f"{theirs * 1e6:.0f}", f"{theirs / mine:.1f}",
        )  # fmt: skip
    return table


def fused(budget: float, machine: Machine) -> Table:
    """GFLOP/s of scores and selection in one call, and the memory its logits took."""
    table = Table("requests, rows, context", "budget, KiB", "peak, KiB", "ms", "GFLOP/s", "of peak")
    for name, (requests, rows, context), most in FUSED:
        x = batch_of(requests, rows, context)
        starts = torch.arange(0, requests * rows + 1, rows, dtype=torch.int32)
        out = torch.empty(requests * rows, TOPK, dtype=torch.int32)
        run = partial(
            index_topk.index_topk, x.q.flatten(0, 1), x.cache, x.weights, starts, x.lens, x.blocks,
            TOPK, budget=most, out=out,
        )  # fmt: skip
        index_topk.reset_logits_peak()
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        peak = index_topk.logits_peak()
        if seconds < budget:
            seconds = median_seconds(run, budget)
        seen = [context - rows + i + 1 for i in range(rows)]
        tokens = requests * sum(n for n in seen if n > TOPK)
        rate = 2.0 * HEADS * DIM * tokens / seconds / 1e9
        table.add_row(
            f"{name}: {requests}, {rows}, {context}", str(most >> 10), str(-(-peak >> 10)),
            f"{seconds * 1e3:.2f}", f"{rate:.0f}", f"{rate / machine.peak:.0%}",
        )  # fmt: skip
    return table


PARTS: dict[str, Callable[[float, Machine], Table]] = {
    "scores": scores,
    "topk": selections,
    "fused": fused,
}


def main(
    part: Annotated[list[str] | None, typer.Option(help=f"Any of {', '.join(PARTS)}.")] = None,
    threads: Threads = 0,
    budget: Budget = 0.5,
    seed: Seed = 0,
) -> None:
    """Print the tables of the parts named, or of all."""
    unknown = set(part or ()) - set(PARTS)
    if unknown:
        raise typer.BadParameter(f"expected any of {', '.join(PARTS)}, got {', '.join(unknown)}")
    setting = prepare(threads, seed)
    machine = Machine(ceilings.fma_peak(), ceilings.read_bandwidth())
    console = Console()
    console.print(
        f"{setting}: "
        f"{machine.peak:.0f} GFLOP/s of multiply-adds, {machine.bandwidth:.1f} GB/s of reads"
    )
    for name in part or PARTS:
        console.print(PARTS[name](budget, machine))


if __name__ == "__main__":
    typer.run(main)

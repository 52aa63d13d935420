"""The memory-bound pieces of a MoE layer and the indexer's scores on a CPU.

    python benchmarks/cpu_pieces.py

Pieces count bytes read plus bytes written and stand beside a copy by torch; scores count
multiply-adds and stand beside the same scores by torch. Medians on random data.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from timing import median_seconds

from mate_plugin.kernels import ceilings, deep_gemm, library, moe, quant

ROWS, WIDTH, TOPK, EXPERTS = 8192, 4096, 8, 64
BLOCK = 64
# (batch, next_n, heads, D, context)
SCORES = ((1, 1, 64, 128, 16384), (1, 2, 64, 128, 16384), (8, 2, 64, 128, 1024))


def pieces(budget: float) -> Table:
    """GB/s of each piece on ``ROWS`` rows of bfloat16."""
    x = torch.randn(ROWS, WIDTH, dtype=torch.bfloat16)
    wide = torch.randn(ROWS, 2 * WIDTH, dtype=torch.bfloat16)
    ids = torch.rand(ROWS // TOPK, EXPERTS).topk(TOPK).indices.to(torch.int32)
    weights = torch.rand(ROWS // TOPK, TOPK)
    routing = moe.route(ids, EXPERTS)
    hidden, result = x[: ROWS // TOPK], torch.empty_like(x)
    sums = torch.empty_like(hidden)
    coded = (x.to(torch.float8_e4m3fn), torch.empty(ROWS, WIDTH // 128))
    copies = {
        "copy by torch": (lambda: result.copy_(x), 4.0),
        "per_token_group_quant_fp8": (lambda: quant.per_token_group_quant_fp8(x, out=coded), 3.0),
        "silu_and_mul": (lambda: quant.silu_and_mul(wide, result), 6.0),
        "silu_and_mul_quant_fp8": (lambda: quant.silu_and_mul_quant_fp8(wide, out=coded), 5.0),
        "permute": (lambda: moe.permute(hidden, routing, TOPK, out=result), 2.0 + 2.0 / TOPK),
        "unpermute": (lambda: moe.unpermute(x, routing, weights, sums), 2.0 + 2.0 / TOPK),
    }
    table = Table("piece", "ms", "GB/s", "of a copy")
    base = None
    for name, (run, bytes_each) in copies.items():
        seconds = median_seconds(run, budget)
        rate = bytes_each * ROWS * WIDTH / seconds / 1e9
        base = base or rate
        table.add_row(name, f"{seconds * 1e3:.2f}", f"{rate:.1f}", f"{rate / base:.0%}")
    return table


def by_torch(q: torch.Tensor, keys: torch.Tensor, scale: torch.Tensor, weights: torch.Tensor):
    """The same scores of contiguous keys by torch: decode, multiply, relu, weighted sum."""
    products = torch.einsum("bjhd,btd->bjht", q.float(), keys.float()).relu_()
    return torch.einsum("bjht,bjh->bjt", products, weights) * scale[:, None]


def scores(budget: float, peak: float) -> Table:
    """GFLOP/s of the indexer's paged scores beside torch's on the same keys."""
    table = Table(
        "batch, next_n, heads, D, context", "ms", "GFLOP/s", "of peak", "torch, ms", "ratio"
    )
    for batch, next_n, heads, dim, context in SCORES:
        blocks = context // BLOCK
        q = torch.randn(batch, next_n, heads, dim).to(torch.float8_e4m3fn)
        keys = torch.randn(batch, context, dim).to(torch.float8_e4m3fn)
        scale = torch.rand(batch, context) + 0.5
        weights = torch.randn(batch * next_n, heads)
        coded = keys.view(torch.uint8).view(batch * blocks, BLOCK * dim)
        scaled = scale.view(batch * blocks, BLOCK).view(torch.uint8)
        cache = torch.cat([coded, scaled], 1).view(batch * blocks, BLOCK, 1, dim + 4)
        table_of_blocks = torch.arange(batch * blocks, dtype=torch.int32).view(batch, blocks)
        lens = torch.full((batch,), context, dtype=torch.int32)
        plan = deep_gemm.get_paged_mqa_logits_metadata(lens, BLOCK)

        by_head = weights.view(batch, next_n, heads)
        paged = (q, cache, weights, lens, table_of_blocks, plan, context, False)
        mine = median_seconds(partial(deep_gemm.fp8_paged_mqa_logits, *paged), budget)
        theirs = median_seconds(partial(by_torch, q, keys, scale, by_head), budget)
        rate = 2.0 * batch * next_n * heads * dim * context / mine / 1e9
        name = f"{batch}, {next_n}, {heads}, {dim}, {context}"
        table.add_row(
            name, f"{mine * 1e3:.2f}", f"{rate:.0f}", f"{rate / peak:.0%}",
            f"{theirs * 1e3:.1f}", f"{theirs / mine:.1f}",
        )  # fmt: skip
    return table


def main(
    threads: Annotated[int, typer.Option(help="Threads; 0 takes torch's number.")] = 0,
    budget: Annotated[float, typer.Option(help="Seconds to spend on each measurement.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of the random data.")] = 0,
) -> None:
    """Print both tables."""
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)
    console, peak = Console(), ceilings.fma_peak()
    console.print(
        f"{library.isa()}, {torch.get_num_threads()} threads, torch {torch.__version__}: "
        f"{peak:.0f} GFLOP/s of multiply-adds, {ceilings.read_bandwidth():.1f} GB/s of reads"
    )
    console.print(pieces(budget))
    console.print(scores(budget, peak))


if __name__ == "__main__":
    typer.run(main)

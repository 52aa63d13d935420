"""The memory-bound pieces of a MoE layer on a CPU.

    python benchmarks/cpu_pieces.py

Pieces count bytes read plus bytes written and stand beside a copy by torch. Medians on random data.
"""

from __future__ import annotations

import torch
import typer
from rich.console import Console
from rich.table import Table
from timing import Budget, Seed, Threads, median_seconds, prepare

from mate_plugin.kernels import ceilings, moe, quant

ROWS, WIDTH, TOPK, EXPERTS = 8192, 4096, 8, 64


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


def main(
    threads: Threads = 0,
    budget: Budget = 0.5,
    seed: Seed = 0,
) -> None:
    """Print the table."""
    setting = prepare(threads, seed)
    console = Console()
    console.print(f"{setting}: {ceilings.read_bandwidth():.1f} GB/s of reads")
    console.print(pieces(budget))


if __name__ == "__main__":
    typer.run(main)

"""What a call costs beside its kernel: checks and the way into the core.

    python benchmarks/call_overhead.py

One row, ``width`` inputs and outputs, ``out`` given. The core counts the time inside its entries;
the rest of a call's wall time is ours. Smallest mean of several rounds, in microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from timing import Seed, Threads, prepare

from mate_plugin.kernels import gemm, library

CALLS = 100

Width = Annotated[int, typer.Option(help="Inputs and outputs of each call.")]
Rounds = Annotated[int, typer.Option(help="Rounds, of which the quickest counts.")]


def overhead(run: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Microseconds of a call, outside and inside the core, in the round with the least outside."""
    best = (float("inf"), 0.0)
    for _ in range(rounds):
        library.reset_counters()
        start = time.perf_counter()
        for _ in range(CALLS):
            run()
        wall = time.perf_counter() - start
        inside = sum(row["seconds"] for row in library.counters())
        best = min(best, ((wall - inside) / CALLS * 1e6, inside / CALLS * 1e6))
    return best


def cases(width: int) -> dict[str, Callable[[], object]]:
    """A call of each function on one row, from operands to a given ``out``."""
    a = torch.randn(1, width).to(torch.float8_e4m3fn)
    b = torch.randn(width, width).to(torch.float8_e4m3fn)
    blocks = (width + 127) // 128
    sa, sb = torch.ones(1, blocks), torch.ones(blocks, blocks)
    wide = torch.randn(1, width, dtype=torch.bfloat16)
    a3, wide3 = a[None], wide[None]
    out, outs = torch.empty_like(wide), torch.empty_like(wide)[None]
    pair, grouped, weights = (a, sa), (a3, sa[None]), (b[None], sb[None])
    count = torch.ones(1, dtype=torch.int32)
    expert = torch.zeros(1, dtype=torch.int32)
    one, bt = torch.ones(1), b[None].transpose(1, 2)
    return {
        "ragged_m_moe_gemm_8bit": lambda: gemm.ragged_m_moe_gemm_8bit(pair, weights, expert, out),
        "ragged_m_moe_gemm_w8a16": lambda: gemm.ragged_m_moe_gemm_w8a16(wide, weights, expert, out),
        "masked_moe_gemm_8bit": lambda: gemm.masked_moe_gemm_8bit(grouped, weights, count, outs),
        "masked_moe_gemm_w8a16": lambda: gemm.masked_moe_gemm_w8a16(wide3, weights, count, outs),
        "gemm_fp8_nt_groupwise": lambda: gemm.gemm_fp8_nt_groupwise(a, b, sa, sb, out=out),
        "gemm_w8a16_nt_groupwise": lambda: gemm.gemm_w8a16_nt_groupwise(wide, b, sb, out=out),
        "bmm_fp8": lambda: gemm.bmm_fp8(a3, bt, one, one, torch.bfloat16, out=outs),
    }


def main(width: Width = 64, rounds: Rounds = 300, threads: Threads = 1, seed: Seed = 0) -> None:
    """Print the table."""
    setting = prepare(threads, seed)
    table = Table("call", "outside the core (us)", "inside (us)")
    for name, run in cases(width).items():
        outside, inside = overhead(run, rounds)
        table.add_row(name, f"{outside:.1f}", f"{inside:.1f}")
    console = Console()
    console.print(setting)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)

"""What a call of each mate.gemm function costs on the host, whatever its kernel does.

    python benchmarks/overhead.py

Tiny operands on one thread; the time that the core counted inside the call is taken away. Beside
them the whole of torch's smallest product.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from timing import Seed, prepare

from mate_plugin.kernels import gemm, library

T, E, N, K = 8, 8, 128, 128
FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16


def cases() -> dict[str, Callable[[], object]]:
    """A call with ``out`` given of each function."""
    rows, scale = torch.randn(T, K).to(FP8), torch.rand(T, 1)
    half = torch.randn(T, K).to(BF16)
    weights, blocks = torch.randn(E, N, K).to(FP8), torch.rand(E, 1, 1)
    counts, out = torch.ones(E, dtype=torch.int32), torch.empty(T, N, dtype=BF16)
    wide, wide_scale = torch.randn(E, T, K).to(FP8), torch.rand(E, T, 1)
    wide_out, one = torch.empty(E, T, N, dtype=BF16), torch.ones(1)
    wide_half, weights_half = wide.to(BF16), torch.randn(E, K, N).to(BF16)
    sums, weight_half = torch.zeros(E, K, K), weights_half[0]
    first, second = (rows, torch.ones(E, K)), (rows.clone(), torch.ones(E, K))
    packed = {"gemm_mode": "per_expert", "alignment_m": 1}
    pair, weight, block = (weights, blocks), weights[0], blocks[0]
    turned = weights.mT
    return {
        "ragged_m_moe_gemm_8bit":
            lambda: gemm.ragged_m_moe_gemm_8bit((rows, scale), pair, counts, out, **packed),
        "ragged_m_moe_gemm_w8a16":
            lambda: gemm.ragged_m_moe_gemm_w8a16(half, pair, counts, out, **packed),
        "masked_moe_gemm_8bit":
            lambda: gemm.masked_moe_gemm_8bit((wide, wide_scale), pair, counts, wide_out),
        "ragged_k_moe_gemm_8bit":
            lambda: gemm.ragged_k_moe_gemm_8bit(first, second, counts, sums),
        "gemm_fp8_nt_groupwise":
            lambda: gemm.gemm_fp8_nt_groupwise(rows, weight, scale, block, out=out),
        "gemm_w8a16_nt_groupwise":
            lambda: gemm.gemm_w8a16_nt_groupwise(half, weight, block, out),
        "bmm_fp8":
            lambda: gemm.bmm_fp8(wide, turned, one, one, BF16, wide_out),
        "bmm_fp16":
            lambda: gemm.bmm_fp16(wide_half, weights_half, BF16, wide_out),
        "torch.mm, all of it":
            lambda: torch.mm(half, weight_half, out=out),
    }  # fmt: skip


def host_seconds(run: Callable[[], object], calls: int, rounds: int) -> float:
    """Median over ``rounds`` of the mean time of a call outside the core."""
    run()
    found = []
    for _ in range(rounds):
        library.reset_counters()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        spent = time.perf_counter() - start
        inside = sum(one["seconds"] for one in library.counters())
        found.append((spent - inside) / calls)
    return statistics.median(found)


def main(
    calls: Annotated[int, typer.Option(min=1, help="Calls of each round.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 300,
    seed: Seed = 0,
) -> None:
    """Print the table."""
    setting = prepare(1, seed)
    table = Table("function", "us on the host", title=setting)
    table.columns[1].justify = "right"
    for name, run in cases().items():
        table.add_row(name, f"{host_seconds(run, calls, rounds) * 1e6:.1f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)

"""GEMMs on a CPU: GFLOP/s and GB/s beside the machine's own limits and its other libraries.

    python benchmarks/cpu.py                # the whole table
    python benchmarks/cpu.py --quick        # fewer sizes, for a first look

Each time is the median over fresh random data; each limit is measured in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from blocks import BLOCK, dequantise, quantised
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import Budget, Seed, Threads, median_seconds, prepare

from mate_plugin.kernels import ceilings, gemm

DENSE = ((2048, 2048), (4096, 7168))
ROWS = (1, 2, 4, 8, 16, 64, 128, 256, 1024)
# (rows of each busy expert, busy experts, experts, n, k): decode and prefill of a MoE layer.
GROUPED = ((1, 8, 64, 4096, 7168), (8, 8, 64, 4096, 7168), (256, 4, 8, 1536, 2048))


@dataclass(frozen=True)
class Case:
    """One implementation at one size; ``bytes_read`` counts each weight once."""

    name: str
    flops: float
    bytes_read: float
    run: Callable[[], object]


def dense_cases(m: int, n: int, k: int) -> list[Case]:
    weight, scale = quantised(n, k)
    x = torch.randn(m, k, dtype=torch.bfloat16)
    rows, row_scale = x.to(torch.float8_e4m3fn), torch.rand(m, -(-k // BLOCK)) + 0.5
    full, x32 = dequantise(weight, scale).t(), x.float()
    full16 = full.to(torch.bfloat16)
    out = torch.empty(m, n, dtype=torch.bfloat16)
    one = torch.ones(())

    flops = 2.0 * m * n * k
    return [
        Case("ours, fp8 x bf16", flops, n * k,
             lambda: gemm.gemm_w8a16_nt_groupwise(x, weight, scale, out)),
        Case("ours, fp8 x fp8", flops, n * k,
             lambda: gemm.gemm_fp8_nt_groupwise(rows, weight, row_scale, scale, out=out)),
        Case("torch._scaled_mm fp8", flops, n * k,
             lambda: torch._scaled_mm(rows, weight.t(), one, one, out_dtype=torch.bfloat16)),
        Case("dequantise + f32 matmul", flops, n * k, lambda: x32 @ dequantise(weight, scale).t()),
        Case("f32 matmul, float weights", flops, 4.0 * n * k, lambda: x32 @ full),
        Case("bf16 matmul, bf16 weights", flops, 2.0 * n * k, lambda: x @ full16),
    ]  # fmt: skip


def grouped_cases(m: int, busy: int, experts: int, n: int, k: int) -> list[Case]:
    weight, scale = quantised(experts, n, k)
    counts = torch.zeros(experts, dtype=torch.int32)
    chosen = torch.randperm(experts)[:busy].sort().values
    counts[chosen] = m
    x = torch.randn(busy * m, k, dtype=torch.bfloat16)
    out = torch.empty(busy * m, n, dtype=torch.bfloat16)

    def ours() -> None:
        gemm.ragged_m_moe_gemm_w8a16(
            x, (weight, scale), counts, out, gemm_mode="per_expert", alignment_m=1
        )

    def peer() -> None:
        for i, e in enumerate(chosen.tolist()):
            part = x[i * m : (i + 1) * m].float() @ dequantise(weight[e], scale[e]).t()
            out[i * m : (i + 1) * m] = part

    flops, read = 2.0 * busy * m * n * k, float(busy * n * k)
    return [
        Case("ours, fp8 x bf16 grouped", flops, read, ours),
        Case("dequantise + f32 matmul, by expert", flops, read, peer),
    ]


def main(
    quick: Annotated[bool, typer.Option(help="Only three row counts of the small layer.")] = False,
    threads: Threads = 0,
    budget: Budget = 0.5,
    seed: Seed = 0,
) -> None:
    """Print the table."""
    setting = prepare(threads, seed)
    console = Console(width=max(Console().width, 130))
    peak, bandwidth = ceilings.fma_peak(), ceilings.read_bandwidth()
    console.print(f"{setting}: {peak:.0f} GFLOP/s of multiply-adds, {bandwidth:.1f} GB/s of reads")
    rows, dense = ((1, 16, 256), DENSE[:1]) if quick else (ROWS, DENSE)
    sizes: list[tuple[str, Callable[[], list[Case]]]] = [
        (f"m {m} n {n} k {k}", lambda m=m, n=n, k=k: dense_cases(m, n, k))  # type: ignore[misc]
        for n, k in dense
        for m in rows
    ]
    if not quick:
        sizes += [
            (f"{s[1]} of {s[2]} experts, {s[0]} rows each, n {s[3]} k {s[4]}",
             lambda s=s: grouped_cases(*s))  # type: ignore[misc]
            for s in GROUPED
        ]  # fmt: skip

    table = Table("size", "implementation", "us", "GFLOP/s", "of peak", "GB/s", "of reads")
    for column in table.columns[2:]:
        column.justify = "right"
    for size, make in track(sizes, description="measuring", console=console, transient=True):
        for case in make():
            seconds = median_seconds(case.run, budget)
            rate, read = case.flops / seconds / 1e9, case.bytes_read / seconds / 1e9
            table.add_row(
                size, case.name, f"{seconds * 1e6:.0f}", f"{rate:.1f}", f"{rate / peak:.0%}",
                f"{read:.1f}", f"{read / bandwidth:.0%}",
            )  # fmt: skip
            size = ""
        table.add_section()
    console.print(table)


if __name__ == "__main__":
    typer.run(main)

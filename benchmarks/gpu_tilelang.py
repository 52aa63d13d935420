"""TileLang's kernels beside ours for Hopper and our portable ones, on one GPU.

    python benchmarks/gpu_tilelang.py                    # a Markdown table
    python benchmarks/gpu_tilelang.py --sweep            # and other tiles and splits
    python benchmarks/gpu_tilelang.py --compile-only     # compiles all of it; needs nvcc, no GPU

Data, timing and L2 flushes are those of gpu.py. Each result is compared with the reference in
float64 first. Ours is chosen once per process, so a child with MATE_PLUGIN_IMPL=portable measures
TileLang beside the portable kernels, and each ratio is of two calls that took turns.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import gpu_indexer
import torch
import typer
from gpu_timing import Case, medians_us
from tilelang_peer import HEADS, K, N, TileLang, cases, checked

from mate_plugin.kernels import library
from mate_plugin.kernels.tilelang import cache, grouped, logits
from mate_plugin.kernels.tilelang.grouped_program import LAYOUTS, Tile, grouped_gemm
from mate_plugin.kernels.tilelang.logits_program import Split, paged_mqa_logits

TILES = (
    grouped.WIDE,
    Tile(128, 128, 256, 3),
    Tile(128, 64, 256, 5),
    grouped.NARROW,
    Tile(64, 128, 128, 4),
    Tile(64, 64, 128, 8),
)
SPLITS = (logits.SPLIT, Split(512, 128, 3), Split(1024, 128, 6), Split(2048, 128, 4))

Row = dict[str, Any]


def measure(peer: TileLang, name: str, case: Case, repeats: int, sweep: bool) -> Row:
    apart = checked(peer, case)
    library.reset_counters()
    case.ours()
    impls = "+".join(sorted({count["impl"] for count in library.counters()}))
    ours, theirs = medians_us([case.ours, case.peer], repeats)  # type: ignore[list-item]
    row = {"case": name, "impl": impls, "ours": ours, "tilelang": theirs, "apart": apart}
    row |= {"tflops": case.flops / theirs / 1e6, "gbs": case.num_bytes / theirs / 1e3}
    return row | {"others": others(peer, name, case, repeats) if sweep else {}}


def others(peer: TileLang, name: str, case: Case, repeats: int) -> dict[str, float]:
    """Times with each tile or split."""
    key, choices = ("split", SPLITS) if name.startswith("paged") else ("tile", TILES)
    usual, runs = getattr(peer, key), {}
    for one in choices:

        def run(one: Tile | Split = one) -> None:
            setattr(peer, key, one)
            case.peer()  # type: ignore[misc]

        setattr(peer, key, one)
        checked(peer, case)
        runs[str(one)] = run
    times = medians_us(list(runs.values()), repeats)
    setattr(peer, key, usual)
    return dict(zip(runs, times, strict=True))


def measured(only: str, repeats: int, seed: int, sweep: bool) -> list[Row]:
    torch.manual_seed(seed)
    rows = []
    peer = TileLang()
    for name, make in cases(peer):
        if only in name:
            with torch.device("cuda"):
                case = make()
            rows.append(row := measure(peer, name, case, repeats, sweep))
            beside = f"{row['impl']} {row['ours']:.1f} us"
            print(f"{name}: TileLang {row['tilelang']:.1f} us, {beside}", file=sys.stderr)
            del case
            peer.expected = None
            gc.collect()
            torch.cuda.empty_cache()
    return rows


def portable(*options: str) -> list[Row]:
    """The rows of a process that takes the portable kernels."""
    done = subprocess.run(
        [sys.executable, __file__, "--json", *options],
        env=os.environ | {"MATE_PLUGIN_IMPL": "portable"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows: list[Row] = json.loads(done.stdout.splitlines()[-1])
    return rows


def table(ours: list[Row], portables: list[Row]) -> Iterator[str]:
    yield (
        "| case | TileLang us | TFLOP/s | GB/s | ours us | ours / TileLang | portable us"
        " | portable / TileLang | 1 - cosine |"
    )
    yield "|---" + "|---:" * 8 + "|"
    for row, other in zip(ours, portables, strict=True):
        yield (
            f"| {row['case']} | {row['tilelang']:.1f} | {row['tflops']:.0f} | {row['gbs']:.0f}"
            f" | {row['ours']:.1f} ({row['impl']}) | {row['ours'] / row['tilelang']:.2f}"
            f" | {other['ours']:.1f} ({other['impl']})"
            f" | {other['ours'] / other['tilelang']:.2f} | {row['apart']:.1e} |"
        )
    for row in ours:
        for choice, micros in row["others"].items():
            yield f"\n{row['case']}, {choice}: {micros:.1f} us"


def compile_all() -> None:
    """Every kernel that the cases and the sweep take, for sm_90a."""
    stride = gpu_indexer.BLOCK * (gpu_indexer.DEPTH + 4)
    kernels: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (grouped_gemm, (layout, 32, N, K, 128, tile)) for layout in LAYOUTS for tile in TILES
    ]
    kernels += [
        (paged_mqa_logits, (next_n, HEADS, gpu_indexer.DEPTH, stride, dims, clean, split))
        for next_n, dims, clean in ((1, 2, False), (1, 1, True), (2, 2, True))
        for split in SPLITS
    ]
    print("| kernel | seconds to compile | FP8 wgmma | TMA loads |\n|---|---:|---:|---:|")
    for build, shape in kernels:
        started = time.perf_counter()
        source = cache.compiled(build, "cuda", *shape).get_kernel_source()
        products = source.count("tl::wgmma_ss<tl::DataType::kFloat8_e4m3")
        seconds = time.perf_counter() - started
        cells = (f"{build.__name__}{shape}", f"{seconds:.1f}", products, source.count("tma_load("))
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main(
    only: Annotated[str, typer.Option(help="Cases whose name contains this.")] = "",
    repeats: Annotated[int, typer.Option(help="Timed calls of each.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the random data.")] = 0,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Time other tiles and splits too.")
    ] = False,
    compile_only: Annotated[bool, typer.Option("--compile-only", help="Needs no GPU.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Rows of this process alone.")] = False,
) -> None:
    """Measure and print."""
    if reason := cache.obstacle("cuda"):
        raise typer.BadParameter(reason)
    cache.package().set_log_level("WARNING")  # or it writes among the rows
    if compile_only:
        compile_all()
        return
    rows = measured(only, repeats, seed, sweep)
    if as_json:
        print(json.dumps(rows))
        return
    options = ("--only", only, "--repeats", str(repeats), "--seed", str(seed))
    versions = f"torch {torch.__version__}, tilelang {cache.package().__version__}"
    print(f"{torch.cuda.get_device_name()}, {versions}\n")
    print("\n".join(table(rows, portable(*options))))


if __name__ == "__main__":
    typer.run(main)

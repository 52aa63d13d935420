"""TileLang's grouped GEMMs beside ours for Hopper and our portable ones, on one GPU.

    python benchmarks/gpu_tilelang.py --compile-only     # programs side by side; needs no GPU
    python benchmarks/gpu_tilelang.py                    # a Markdown table
    python benchmarks/gpu_tilelang.py --sweep            # and a row for each other tile

Calls are those of a user, with MATE_PLUGIN_IMPL=tilelang, auto and portable in turns; data, timing
and L2 flushes those of gpu.py. TileLang's result was compared with the reference in float64 before.
Each case has a process and a time limit of its own and prints a row as soon as it has one, so that
what hangs or crashes costs no other case. A host time near that of the flush (some 80 us) would be
part of the times beside it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from unittest import mock

import tilelang_programs
import torch
import typer
from gpu_impls import Impls
from gpu_timing import Case, medians_us
from tilelang_sizes import TILES, USUAL, cases

from mate_plugin.kernels.tilelang import cache, grouped

HEAD = (
    "| case | TileLang us | TFLOP/s | GB/s | ours us | ours / TileLang | portable us"
    " | portable / TileLang | TileLang's host us | 1 - cosine |\n|---" + "|---:" * 9 + "|"
)
# Sums of FP8 products on the tensor cores keep about 14 bits, results are rounded to bf16.
APART = 1e-3
WRONG = 3  # exit status of a case with results that are not the reference's


def host_us(run: Callable[[], object], calls: int = 50) -> float:
    """What queueing a call takes on the host."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        run()
    seconds = time.perf_counter() - started
    torch.cuda.synchronize()
    return seconds / calls * 1e6


def measure(impls: Impls, name: str, case: Case, repeats: int) -> bool:
    """Print a row; whether TileLang's numbers are the reference's, which the peer left."""
    assert case.differ is not None
    runs = [impls.run(impl, case.ours) for impl in ("tilelang", "auto", "portable")]
    # Before anything else writes the result.
    runs[0]()
    with torch.device("cuda"):
        apart = case.differ()
    served = [impls.served(run) for run in runs]
    theirs, ours, portable = medians_us(runs, repeats)
    right = apart <= APART and served[0] == "tilelang"
    print(
        f"| {name} | {theirs:.1f} | {case.flops / theirs / 1e6:.0f}"
        f" | {case.num_bytes / theirs / 1e3:.0f} | {ours:.1f} ({served[1]}) | {ours / theirs:.2f}"
        f" | {portable:.1f} ({served[2]}) | {portable / theirs:.2f} | {host_us(runs[0]):.0f}"
        f" | {apart:.1e}{'' if right else f' WRONG, {served[0]}'} |",
        flush=True,
    )
    return right


def one_case(wanted: str, repeats: int, seed: int, sweep: bool) -> bool:
    """The rows of one case, in this process."""
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        impls = Impls(Path(folder))
        with torch.device("cuda"):
            case = dict(cases())[wanted]()
            assert case.peer is not None
            case.peer()
        right = measure(impls, wanted, case, repeats)
        for tile in TILES if sweep else ():
            with mock.patch.object(grouped, "tile_for", lambda _, tile=tile: tile):
                right &= measure(impls, f"{wanted}, {tile}", case, repeats)
    return right


def every_case(only: str, limit: int, *options: str) -> bool:
    """Each case in a process of its own."""
    right = True
    for name, _ in cases():
        if only not in name:
            continue
        try:
            command = [sys.executable, __file__, "--case", name, *options]
            status = subprocess.run(command, timeout=limit, check=False).returncode
            why = "" if status in (0, WRONG) else f"exit status {status}"
        except subprocess.TimeoutExpired:
            status, why = 1, f"no end in {limit} s"
        if why:
            print(f"| {name} | failed: {why} |", flush=True)
        right &= status == 0
    return right


def main(
    only: Annotated[str, typer.Option(help="Cases whose name contains this.")] = "",
    repeats: Annotated[int, typer.Option(help="Timed calls of each.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the random data.")] = 0,
    sweep: Annotated[bool, typer.Option("--sweep", help="Other tiles too.")] = False,
    limit: Annotated[int, typer.Option(help="Seconds for a case, or for all compiling.")] = 180,
    compile_only: Annotated[bool, typer.Option("--compile-only", help="Needs no GPU.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes that compile; 0: one a core.")] = 0,
    share: Annotated[str, typer.Option(hidden=True)] = "",
    case: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure and print."""
    if reason := cache.obstacle("cuda"):
        raise typer.BadParameter(reason)
    cache.package().set_log_level("WARNING")  # or it writes among the rows
    tiles = TILES if sweep else USUAL
    if share:
        right = tilelang_programs.compile_share(tiles, *map(int, share.split("/")))
    elif compile_only:
        command = [sys.executable, __file__, *["--sweep"] * sweep]
        right = tilelang_programs.compile_all(tiles, command, jobs, limit)
    elif case:
        right = one_case(case, repeats, seed, sweep)
        raise typer.Exit(0 if right else WRONG)
    else:
        versions = f"torch {torch.__version__}, tilelang {cache.package().__version__}"
        print(f"{torch.cuda.get_device_name()}, {versions}\n\n{HEAD}", flush=True)
        options = ["--repeats", str(repeats), "--seed", str(seed), *["--sweep"] * sweep]
        right = every_case(only, limit, *options)
    raise typer.Exit(0 if right else 1)


if __name__ == "__main__":
    typer.run(main)

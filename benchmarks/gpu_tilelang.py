"""TileLang's kernels beside ours for Hopper and our portable ones, on one GPU.

    python benchmarks/gpu_tilelang.py --compile-only     # all programs side by side; needs no GPU
    python benchmarks/gpu_tilelang.py                    # a Markdown table
    python benchmarks/gpu_tilelang.py --sweep            # and a row for each other tile and split

Data, timing and L2 flushes are those of gpu.py. The three take turns on the same data, after
TileLang's result was compared with the reference in float64. Each case has a process and a time
limit of its own and prints a row as soon as it has one, so that what hangs or crashes costs no
other case. A host time near that of the flush (some 80 us) would be part of the times beside it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import tilelang_programs
import torch
import typer
from gpu_impls import Both
from gpu_timing import Case, medians_us
from tilelang_peer import APART, SPLITS, TILES, TileLang, cases, distance

from mate_plugin.kernels.tilelang import cache

HEAD = (
    "| case | TileLang us | TFLOP/s | GB/s | ours us | ours / TileLang | portable us"
    " | portable / TileLang | TileLang's host us | 1 - cosine |\n|---" + "|---:" * 9 + "|"
)
WRONG = 3  # exit status of a case with results that are not the reference's


def host_us(case: Case, calls: int = 50) -> float:
    """What queueing a call of TileLang's takes on the host."""
    assert case.peer is not None
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        case.peer()
    seconds = time.perf_counter() - started
    torch.cuda.synchronize()
    return seconds / calls * 1e6


def measure(peer: TileLang, both: Both, name: str, case: Case, repeats: int) -> bool:
    """Print a row; whether TileLang's numbers are the reference's."""
    apart = distance(peer, case)
    runs = [both.run("auto", case.ours), both.run("portable", case.ours)]
    impls = [both.served(run) for run in runs]
    theirs, ours, portable = medians_us([case.peer, *runs], repeats)  # type: ignore[list-item]
    right = apart <= APART
    print(
        f"| {name} | {theirs:.1f} | {case.flops / theirs / 1e6:.0f}"
        f" | {case.num_bytes / theirs / 1e3:.0f} | {ours:.1f} ({impls[0]}) | {ours / theirs:.2f}"
        f" | {portable:.1f} ({impls[1]}) | {portable / theirs:.2f} | {host_us(case):.0f}"
        f" | {apart:.1e}{'' if right else ' WRONG'} |",
        flush=True,
    )
    return right


def one_case(wanted: str, repeats: int, seed: int, sweep: bool) -> bool:
    """The rows of one case, in this process."""
    torch.manual_seed(seed)
    peer = TileLang()
    key, choices = ("split", SPLITS) if wanted.startswith("paged") else ("tile", TILES)
    with tempfile.TemporaryDirectory() as folder:
        both = Both(Path(folder))
        with torch.device("cuda"):
            case = dict(cases(peer))[wanted]()
        right = measure(peer, both, wanted, case, repeats)
        for choice in choices if sweep else ():
            setattr(peer, key, choice)
            try:
                right &= measure(peer, both, f"{wanted}, {choice}", case, repeats)
            except Exception as error:  # another choice may do
                right = False
                said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                print(f"| {wanted}, {choice} | failed: {said} |", flush=True)
    return right


def every_case(only: str, limit: int, *options: str) -> bool:
    """Each case in a process of its own."""
    right = True
    for name, _ in cases(TileLang()):
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
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Time other tiles and splits too.")
    ] = False,
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
    if share:
        right = tilelang_programs.compile_share(*map(int, share.split("/")))
    elif compile_only:
        right = tilelang_programs.compile_all(__file__, jobs, limit)
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

"""Timing shared by the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
import typer

from mate_plugin.kernels import library

Threads = Annotated[int, typer.Option(help="Threads; 0 takes torch's number.")]
Budget = Annotated[float, typer.Option(help="Seconds to spend on each measurement.")]
Seed = Annotated[int, typer.Option(help="Seed of the random data.")]

# A slow peer is measured no longer than this.
LONGEST_S = 20.0
WARM_UP_S = 2.0


def prepare(threads: int, seed: int) -> str:
    """Seed the data, set the threads and keep them busy for a while: new ones share a core until
    the system spreads them. Returns what is measured with, in words."""
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)
    x = torch.randn(512, 512)
    end = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < end:
        x @ x
    return f"{library.isa()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def median_seconds(
    run: Callable[[], object], budget: float, longest: float = float("inf")
) -> float:
    """Median time of a call: at least 3 calls, and up to ``budget`` seconds or 200 calls.

    A first call of more than ``longest`` seconds stays the only one.
    """
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    if first > longest:
        return first
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 200):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
        if sum(times) > LONGEST_S:
            break
    return statistics.median(times)


def medians_in_turn(runs: Mapping[str, Callable[[], object]], budget: float) -> dict[str, float]:
    """Median time of each call, one after the other in rounds: what slows the machine meanwhile
    slows all of them. At least 3 rounds, and up to ``budget`` seconds for each or 200 rounds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + budget * len(runs)
    for rounds in range(200):
        if rounds >= 3 and time.perf_counter() > end:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(some) for name, some in times.items()}

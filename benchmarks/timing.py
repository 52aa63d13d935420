"""Timing shared by the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

# A slow peer is measured no longer than this.
LONGEST_S = 20.0
WARM_UP_S = 2.0


def warm_up() -> None:
    """Keep all threads busy for a while: new ones share a core until the system spreads them."""
    x = torch.randn(512, 512)
    end = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < end:
        x @ x


def median_seconds(run: Callable[[], object], budget: float) -> float:
    """Median time of a call: at least 3 calls, and up to ``budget`` seconds or 200 calls."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 200):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
        if sum(times) > LONGEST_S:
            break
    return statistics.median(times)

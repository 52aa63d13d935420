"""Timing shared by the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

# A slow peer is measured no longer than this.
LONGEST_S = 20.0


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

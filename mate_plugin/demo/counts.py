"""Sums over the files that each process of the server writes to MATE_PLUGIN_REPORT."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KernelCount:
    """Calls of one compiled kernel and the seconds spent in it, over all processes."""

    kernel: str
    implementation: str
    calls: int
    seconds: float


def read_counts(folder: Path) -> list[KernelCount]:
    """Totals per (kernel, implementation) of all files in ``folder``, slowest first."""
    calls: Counter[tuple[str, str]] = Counter()
    seconds: dict[tuple[str, str], float] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            rows = json.loads(path.read_text()).get("counters", [])
        except FileNotFoundError:
            continue
        for row in rows:
            key = (row["op"], row["impl"])
            calls[key] += row["calls"]
            seconds[key] = seconds.get(key, 0.0) + row["seconds"]
    counts = [KernelCount(*key, calls[key], seconds[key]) for key in calls]
    return sorted(counts, key=lambda count: -count.seconds)


def since(before: list[KernelCount], after: list[KernelCount]) -> list[KernelCount]:
    """What ``after`` counts beyond ``before``, without kernels that did not run in between."""
    old = {(count.kernel, count.implementation): count for count in before}
    grown = []
    for count in after:
        first = old.get((count.kernel, count.implementation))
        calls = count.calls - (first.calls if first else 0)
        seconds = count.seconds - (first.seconds if first else 0.0)
        if calls > 0:
            grown.append(KernelCount(count.kernel, count.implementation, calls, seconds))
    return sorted(grown, key=lambda count: -count.seconds)

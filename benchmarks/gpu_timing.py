"""Timing on a GPU, and what the card can do at most."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# More than the L2 cache of any card.
FLUSHED = 256 << 20


@dataclass(frozen=True)
class Case:
    """One call at one size. ``peer`` does the same with another library; ``differ`` says by how
    much the results of both differ, as 1 - cosine."""

    flops: float
    num_bytes: float
    ours: Callable[[], object]
    peer: Callable[[], object] | None = None
    differ: Callable[[], float] | None = None


# A name, and what makes the operands once it is the case's turn.
Named = tuple[str, Callable[[], Case]]


def medians_us(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median time of each call between events around it, in microseconds.

    The calls take turns, forwards and backwards, so that a card whose clock falls as it warms up is
    the same for all. A write of 256 MiB before each call empties the L2 cache, and takes long
    enough for the host to queue the call meanwhile.
    """
    flush = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")
    for run in runs:
        for _ in range(3):
            run()
    events: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in runs]
    for turn in range(repeats):
        order = range(len(runs)) if turn % 2 else reversed(range(len(runs)))
        for i in order:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            runs[i]()
            end.record()
            events[i].append((start, end))
    torch.cuda.synchronize()
    return [
        statistics.median(start.elapsed_time(end) * 1e3 for start, end in pairs) for pairs in events
    ]


def median_us(run: Callable[[], object], repeats: int) -> float:
    """Median time of one call, as in :func:`medians_us`."""
    return medians_us([run], repeats)[0]


def cosine_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 - 2 x y / (x x + y y), which is 0 for equal tensors; NaN where either holds NaN."""
    a, b = x.double(), y.double()
    energy = (a * a + b * b).sum()
    return float(1 - 2 * (a * b).sum() / energy) if energy != 0 else 0.0


def copy_bandwidth(repeats: int) -> float:
    """GB/s of a device-to-device copy, bytes read and written counted."""
    x = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.numel() / median_us(lambda: y.copy_(x), repeats) / 1e3


def bf16_rate(repeats: int) -> float:
    """TFLOP/s of torch's product of random bf16 matrices."""
    x, y = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * 8192.0**3 / median_us(lambda: x @ y, repeats) / 1e6

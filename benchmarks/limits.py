"""The limits of the machine that a run divides by, measured in that run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mate_plugin.kernels import ceilings

# More than any cache holds.
READ_BYTES = 1 << 30


@dataclass(frozen=True)
class Limits:
    """GFLOP/s of each kind of product that the instruction set has, GB/s of reads."""

    fma: float
    bf16: float | None
    tile: float | None
    reads: float

    @property
    def products(self) -> float:
        """GFLOP/s of the fastest kind."""
        return max(self.fma, self.bf16 or 0.0, self.tile or 0.0)

    def floor(self, flops: float, num_bytes: float) -> float:
        """Seconds below which nothing can do so many operations and read so many bytes."""
        return max(flops / self.products, num_bytes / self.reads) / 1e9

    def binding(self, flops: float, num_bytes: float) -> str:
        """Which limit makes the floor."""
        return "reads" if num_bytes / self.reads > flops / self.products else "products"

    def describe(self) -> str:
        """One phrase for people."""
        kinds = (
            (self.fma, "GFLOP/s of multiply-adds"),
            (self.bf16, "of bf16 pairs"),
            (self.tile, "of bf16 tiles"),
            (self.reads, "GB/s of reads"),
        )
        return ", ".join(f"{rate:.4g} {name}" for rate, name in kinds if rate)


def measure_limits(repeats: int = 5) -> Limits:
    """The limits as they are now; a shared machine's change from minute to minute."""
    return Limits(
        ceilings.fma_peak(repeats=repeats),
        ceilings.bf16_peak(repeats=repeats),
        ceilings.tile_peak(repeats=repeats),
        ceilings.read_bandwidth(repeats=repeats, num_bytes=READ_BYTES),
    )


def middle(limits: Sequence[Limits]) -> Limits:
    """The median of each limit."""

    def of(rates: list[float | None]) -> float | None:
        known = [rate for rate in rates if rate is not None]
        return statistics.median(known) if known else None

    return Limits(
        statistics.median(one.fma for one in limits),
        of([one.bf16 for one in limits]),
        of([one.tile for one in limits]),
        statistics.median(one.reads for one in limits),
    )

"""What the machine can do at most, measured with the instruction set in use."""

from __future__ import annotations

import torch

from mate_plugin.kernels import library

# Rounds of each measurement: some tens of milliseconds.
_FMA_STEPS, _BF16_STEPS, _TILE_STEPS = 10_000_000, 4_000_000, 1_000_000


def fma_peak(num_threads: int | None = None, repeats: int = 5) -> float:
    """Best rate of float32 multiply-adds from registers over ``repeats`` runs, in GFLOP/s."""
    threads = library.threads(num_threads)
    return max(library.module().fma_peak(_FMA_STEPS, threads) for _ in range(repeats))


def bf16_peak(num_threads: int | None = None, repeats: int = 5) -> float | None:
    """The same of bf16 products added in pairs to float32 (AVX-512 BF16).

    None where the instruction set in use does not have them, though the machine may.
    """
    threads = library.threads(num_threads)
    return max(library.module().bf16_peak(_BF16_STEPS, threads) for _ in range(repeats)) or None


def tile_peak(num_threads: int | None = None, repeats: int = 5) -> float | None:
    """The same of bf16 products of tiles (AMX); None where the instruction set has no tiles."""
    threads = library.threads(num_threads)
    return max(library.module().tile_peak(_TILE_STEPS, threads) for _ in range(repeats)) or None


def read_bandwidth(
    num_threads: int | None = None, repeats: int = 5, num_bytes: int = 1 << 28
) -> float:
    """Best rate of contiguous reads of ``num_bytes`` over ``repeats`` runs, in GB/s."""
    threads = library.threads(num_threads)
    data = torch.ones(num_bytes // 4)
    return max(library.module().read_bandwidth(data, threads) for _ in range(repeats))

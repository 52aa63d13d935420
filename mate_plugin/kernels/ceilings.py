"""What the machine can do at most, measured with the instruction set in use."""

from __future__ import annotations

import torch

from mate_plugin.kernels import library


def fma_peak(num_threads: int | None = None, repeats: int = 5) -> float:
    """Best rate of float32 multiply-adds from registers over ``repeats`` runs, in GFLOP/s."""
    threads = library.threads(num_threads)
    return max(library.module().fma_peak(10_000_000, threads) for _ in range(repeats))


def read_bandwidth(
    num_threads: int | None = None, repeats: int = 5, num_bytes: int = 1 << 28
) -> float:
    """Best rate of contiguous reads of ``num_bytes`` over ``repeats`` runs, in GB/s."""
    threads = library.threads(num_threads)
    data = torch.ones(num_bytes // 4)
    return max(library.module().read_bandwidth(data, threads) for _ in range(repeats))

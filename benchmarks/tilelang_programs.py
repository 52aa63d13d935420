"""Every TileLang program that gpu_tilelang.py runs, compiled for sm_90a side by side."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence

from gpu_gemm import ALIGNMENT
from tilelang_sizes import CONTIGUOUS, MASKED, K, N

from mate_plugin.kernels.tilelang import cache
from mate_plugin.kernels.tilelang.grouped import Shape
from mate_plugin.kernels.tilelang.grouped_program import BLOCK, Tile, grouped_gemm


def shapes(tiles: Sequence[Tile]) -> list[Shape]:
    """Arguments of the programs, as the calls ask for them."""
    calls = [("per_token", experts, N, K, ALIGNMENT) for experts, _ in CONTIGUOUS]
    calls += [("masked", MASKED[0], N, K, BLOCK)]
    return [(*call, tile) for tile in tiles for call in calls]


def compile_share(tiles: Sequence[Tile], first: int, step: int) -> bool:
    """Compile every ``step``-th program, with a row for each."""
    right = True
    for shape in shapes(tiles)[first::step]:
        started = time.perf_counter()
        try:
            source = cache.compiled(grouped_gemm, "cuda", *shape).get_kernel_source()
            products = source.count("tl::wgmma_ss<tl::DataType::kFloat8_e4m3")
            cells = f"{products} | {source.count('tma_load(')}"
        except Exception as error:  # the others may compile
            right = False
            cells = "failed: " + " ".join(f"{type(error).__name__}: {error}".split())[:300]
        seconds = time.perf_counter() - started
        print(f"| {shape} | {seconds:.1f} | {cells} |", flush=True)
    return right


def compile_all(tiles: Sequence[Tile], command: list[str], jobs: int, limit: int) -> bool:
    """Compile all in ``jobs`` processes of ``command``, which end after ``limit`` seconds."""
    print("| program | seconds | FP8 wgmma | TMA loads |\n|---|---:|---:|---:|", flush=True)
    jobs = min(jobs or os.cpu_count() or 1, len(shapes(tiles)))
    started = time.monotonic()
    running = [subprocess.Popen([*command, "--share", f"{first}/{jobs}"]) for first in range(jobs)]
    right = True
    for process in running:
        try:
            left = max(1.0, limit - (time.monotonic() - started))
            right &= process.wait(left) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            right = False
            print(f"| a process of {len(running)} | no end in {limit} s |", flush=True)
    return right

"""Every TileLang program that gpu_tilelang.py runs, compiled for sm_90a side by side."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import gpu_indexer
from gpu_gemm import ALIGNMENT
from tilelang_peer import CONTIGUOUS, HEADS, MASKED, SPLITS, TILES, K, N

from mate_plugin.kernels.tilelang import cache
from mate_plugin.kernels.tilelang.grouped_program import BLOCK, grouped_gemm
from mate_plugin.kernels.tilelang.logits_program import paged_mqa_logits

Program = tuple[Callable[..., Any], tuple[Any, ...]]


def programs() -> list[Program]:
    """Functions and shapes, as the kernels ask for them."""
    stride = gpu_indexer.BLOCK * (gpu_indexer.DEPTH + 4)
    grouped = [("per_token", experts, N, K, ALIGNMENT) for experts, _ in CONTIGUOUS]
    grouped += [("masked", MASKED[0], N, K, BLOCK)]
    found: list[Program] = [(grouped_gemm, (*shape, tile)) for tile in TILES for shape in grouped]
    return found + [
        (paged_mqa_logits, (1, HEADS, gpu_indexer.DEPTH, stride, 2, False, split))
        for split in SPLITS
    ]


def compile_share(first: int, step: int) -> bool:
    """Compile every ``step``-th program, with a row for each."""
    right = True
    for build, shape in programs()[first::step]:
        started = time.perf_counter()
        try:
            source = cache.compiled(build, "cuda", *shape).get_kernel_source()
            products = source.count("tl::wgmma_ss<tl::DataType::kFloat8_e4m3")
            cells = f"{products} | {source.count('tma_load(')}"
        except Exception as error:  # the others may compile
            right = False
            cells = "failed: " + " ".join(f"{type(error).__name__}: {error}".split())[:300]
        seconds = time.perf_counter() - started
        print(f"| {build.__name__}{shape} | {seconds:.1f} | {cells} |", flush=True)
    return right


def compile_all(script: str, jobs: int, limit: int) -> bool:
    """Compile all in ``jobs`` processes of ``script``, which end after ``limit`` seconds."""
    print("| program | seconds | FP8 wgmma | TMA loads |\n|---|---:|---:|---:|", flush=True)
    jobs = min(jobs or os.cpu_count() or 1, len(programs()))
    started = time.monotonic()
    running = [
        subprocess.Popen([sys.executable, script, "--share", f"{first}/{jobs}"])
        for first in range(jobs)
    ]
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

"""Operands of grouped products and where their rows are."""

from __future__ import annotations

from typing import Any

import torch
from gemm_cases import BF16, FP16, NAN, Maker, ceil_div

from mate_plugin.kernels import library

BLOCKS, ROWS, EXPERTS, TENSOR = (1, 128, 128), (1, 1, 128), (1, -1, -1), (-1, -1, -1)


def operands(
    make: Maker, rows: tuple[int, ...], experts: int, n: int, k: int, types: Any, grain: Any
) -> tuple[Any, Any]:
    a, b = make.normal(*rows, k, dtype=types[0]), make.normal(experts, n, k, dtype=types[1])
    if types[0] in (BF16, FP16):
        return a, b
    if grain == TENSOR:
        return (a, make.scale(1)), (b, make.scale(1))
    kb, nb = ceil_div(k, grain[2]), ceil_div(n, grain[1])
    return (a, make.scale(*rows, kb)), (b, make.scale(experts, nb, kb))


def layout(mode: str, counts: list[int], align: int) -> tuple[torch.Tensor, int]:
    """``ragged_tokens_info`` and the number of rows, some of them after the last expert."""
    if mode == "per_expert":
        return torch.tensor(counts, dtype=torch.int32), sum(counts) + 5
    ids: list[int] = []
    ends: list[int] = []
    for expert, count in enumerate(counts):
        ids += [-1] * (-len(ids) % align) + [expert] * count
        ends.append(len(ids))
    ids += [-1] * 5
    if mode == "psum_expert":
        return torch.tensor(ends, dtype=torch.int32), len(ids)
    return torch.tensor(ids, dtype=torch.int32), len(ids)


def served_by(op: str) -> set[str]:
    return {row["impl"] for row in library.counters() if row["op"] == op}


def poison(a: Any, unowned: torch.Tensor) -> None:
    for x in a if isinstance(a, tuple) else (a,):
        if x.numel() > 1 and x.element_size() == 1:
            x.view(torch.uint8)[unowned] = 0x7F
        elif x.numel() > 1:
            x[unowned] = NAN

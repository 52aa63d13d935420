"""What the selection must be, by sorting in Python."""

from __future__ import annotations

import math

import torch


def selected(values: list[float], k: int) -> list[int]:
    """Positions of the k largest, ascending: NaN first, then by value, then by position."""

    def rank(position: int) -> tuple[int, float, int]:
        value = values[position]
        return (0, 0.0, position) if math.isnan(value) else (1, -value, position)

    return sorted(sorted(range(len(values)), key=rank)[:k])


def selected_rows(
    logits: torch.Tensor, lengths: list[int], k: int, starts: list[int] | None = None
) -> torch.Tensor:
    """What ``top_k`` returns."""
    rows = []
    for row, end in enumerate(lengths):
        start = starts[row] if starts else 0
        found = selected(logits[row, start:end].tolist(), k)
        rows.append(found + [-1] * (k - len(found)))
    return torch.tensor(rows, dtype=torch.int32).view(len(lengths), k)

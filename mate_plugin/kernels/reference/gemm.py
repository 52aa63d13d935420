"""The GEMMs in plain torch and float64: slow, obvious, and what the kernels are tested against.

An operand is a tensor, or a pair (FP8 tensor, float32 scale). Results are float64; nothing is
rounded to the type of an output. Products of rows that belong to no expert are not computed.
"""

from __future__ import annotations

import torch

Operand = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
FP8_MAX = 448.0  # of e4m3fn


def dequantize(x: torch.Tensor, scale: torch.Tensor | None, block: tuple[int, int]) -> torch.Tensor:
    """``x * scale`` in float64; ``scale`` has one entry per ``block`` of the last two dimensions.

    A block of 0 or less is a whole dimension; scale dimensions of size 1 broadcast.
    """
    wide = x.to(torch.float32).to(torch.float64)
    if scale is None:
        return wide
    scale = scale.to(torch.float64)
    if scale.numel() == 1:
        return wide * scale.reshape(())
    for dim, size in zip((-2, -1), block, strict=True):
        if size > 0:
            blocks = torch.arange(x.shape[dim], device=x.device) // size
            scale = scale.index_select(dim, blocks)
    return wide * scale


def split(operand: Operand) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The tensor and its scale, if any."""
    return operand if isinstance(operand, tuple) else (operand, None)


def expert_of_row(
    info: torch.Tensor, num_rows: int, gemm_mode: str = "per_token", alignment_m: int = 128
) -> torch.Tensor:
    """The expert of each row or -1, int64 (num_rows,), from any form of ``ragged_tokens_info``."""
    if gemm_mode == "per_token":
        return info.to(torch.int64)
    experts = torch.full((num_rows,), -1, dtype=torch.int64)
    end = 0
    for expert, value in enumerate(info.tolist()):
        if gemm_mode == "psum_expert":
            start, end = -(-end // alignment_m) * alignment_m, value
        else:
            start, end = end, end + value
        experts[start:end] = expert
    return experts


def ragged_m(
    a: Operand,
    b: Operand,
    experts: torch.Tensor,
    granularity: tuple[int, int, int] = (1, 128, 128),
) -> torch.Tensor:
    """``A[r] @ B[experts[r]].T``, (T, N); rows of no expert are zero."""
    _, gran_n, gran_k = granularity
    wide_a = dequantize(*split(a), (granularity[0], gran_k))
    wide_b = dequantize(*split(b), (gran_n, gran_k))
    out = torch.zeros(wide_a.shape[0], wide_b.shape[1], dtype=torch.float64)
    for expert in range(wide_b.shape[0]):
        rows = (experts == expert).nonzero().flatten()
        out[rows] = wide_a[rows] @ wide_b[expert].T
    return out


def masked(
    a: Operand,
    b: Operand,
    counts: torch.Tensor,
    granularity: tuple[int, int, int] = (1, 128, 128),
) -> torch.Tensor:
    """``A[e, r] @ B[e].T`` for r below ``counts[e]``, (E, M, N); other rows are zero."""
    _, gran_n, gran_k = granularity
    wide_a = dequantize(*split(a), (granularity[0], gran_k))
    wide_b = dequantize(*split(b), (gran_n, gran_k))
    out = torch.zeros(*wide_a.shape[:2], wide_b.shape[1], dtype=torch.float64)
    for expert, count in enumerate(counts.tolist()):
        out[expert, :count] = wide_a[expert, :count] @ wide_b[expert].T
    return out


def ragged_k(a: Operand, b: Operand, counts: torch.Tensor) -> torch.Tensor:
    """``A_e.T @ B_e`` over the rows of each expert, (E, M, N); scale blocks restart per expert."""
    (qa, sa), (qb, sb) = split(a), split(b)
    out = torch.zeros(counts.numel(), qa.shape[1], qb.shape[1], dtype=torch.float64)
    row = block = 0
    for expert, count in enumerate(counts.tolist()):
        rows, blocks = slice(row, row + count), slice(block, block - (-count // 128))
        wide_a = dequantize(qa[rows], None if sa is None else sa[blocks], (128, 1))
        wide_b = dequantize(qb[rows], None if sb is None else sb[blocks], (128, 1))
        out[expert] = wide_a.T @ wide_b
        row, block = rows.stop, blocks.stop
    return out


def dense(
    a: Operand, b: Operand, granularity: tuple[int, int, int] = (1, 128, 128)
) -> torch.Tensor:
    """``A @ B.T`` of (..., M, K) and (..., N, K) operands."""
    gran_m, gran_n, gran_k = granularity
    wide_a = dequantize(*split(a), (gran_m, gran_k))
    return wide_a @ dequantize(*split(b), (gran_n, gran_k)).mT


def block_scales(x: torch.Tensor, block: int = 128) -> torch.Tensor:
    """Largest magnitude of each 1 x ``block`` of the last dimension over the largest e4m3."""
    parts = x.abs().split(block, dim=-1)
    return torch.stack([part.amax(dim=-1) for part in parts], dim=-1) / FP8_MAX

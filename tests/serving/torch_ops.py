"""What the torch models are made of: rounding, norms, rotations and attention in plain torch."""

from __future__ import annotations

import math

import torch

BLOCK = 128
BF16 = torch.bfloat16
FP8 = torch.float8_e4m3fn
# Queries at a time, so that scores of long sequences stay small.
CHUNK = 256


def spread(scale: torch.Tensor, n: int, k: int) -> torch.Tensor:
    """Block scales as one number per element of ``[n, k]``."""
    return scale.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]


def round_groups(x: torch.Tensor) -> torch.Tensor:
    """``x[T, K]`` after e4m3 rounding with one scale per token and 128 columns."""
    parts = []
    for group in x.float().split(BLOCK, 1):
        scale = group.abs().amax(1, keepdim=True).clamp(min=1e-10) / 448
        parts.append((group / scale).clamp(-448, 448).to(FP8).float() * scale)
    return torch.cat(parts, 1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of float32 ``x``, as bf16."""
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return x.to(BF16) * weight.to(BF16)


def angles(length: int, frequency: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine ``[T, 1, len(frequency)]`` of each position, rounded to bf16."""
    angle = torch.arange(length)[:, None] * frequency
    return angle.cos().to(BF16).float()[:, None], angle.sin().to(BF16).float()[:, None]


def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate element i with element i + dim / 2."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(BF16)


def rotate_halves_16bit(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """:func:`rotate_halves` with products rounded to bf16, as vLLM rotates with YaRN."""
    a, b = x.float().chunk(2, -1)
    return torch.cat(_rotated(a, b, cos, sin), -1)


def rotate_pairs_16bit(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each even element with the odd one behind it; products rounded to bf16."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack(_rotated(a, b, cos, sin), -1).flatten(-2)


def _rotated(
    a: torch.Tensor, b: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return (a * cos).to(BF16) - (b * sin).to(BF16), (b * cos).to(BF16) + (a * sin).to(BF16)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention in float32, as bf16 ``[T, heads * dim]``.

    ``q[T, heads, d]``; ``k[T, heads, d]`` and ``v[T, heads, dim]``, or both with one head for all.
    ``kept[T, T]`` (bool) says which of the earlier tokens each token reads.
    """
    q, k, v = (t.float().transpose(0, 1) for t in (q, k, v))
    parts = []
    for start in range(0, q.shape[1], CHUNK):
        rows = q[:, start : start + CHUNK]
        end = start + rows.shape[1]
        scores = rows @ k[:, :end].transpose(1, 2) * scale
        hidden = torch.ones(end - start, end, dtype=torch.bool).triu(start + 1)
        if kept is not None:
            hidden |= ~kept[start:end, :end]
        weights = scores.masked_fill_(hidden, -math.inf).softmax(-1)
        parts.append((weights @ v[:, :end]).to(BF16).transpose(0, 1).flatten(1))
    return torch.cat(parts)

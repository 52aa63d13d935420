"""Random FP8 weights with a scale for each block, and what they stand for."""

from __future__ import annotations

import torch

BLOCK = 128


def quantised(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random e4m3 weights and a float32 scale for each 128 x 128 block."""
    blocks = [-(-size // BLOCK) for size in shape[-2:]]
    scale = torch.rand(*shape[:-2], *blocks) + 0.5
    return torch.randn(*shape).to(torch.float8_e4m3fn), scale


def dequantise(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``weight[n, k]`` times its scales, in float32."""
    n, k = weight.shape
    full = scale.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
    return weight.float() * full

"""The pieces around the GEMMs in plain torch: slow, obvious, what the kernels are tested against.

Quantisation follows the documented float32 arithmetic to the bit; the rest is float64.
"""

from __future__ import annotations

import torch

LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


def per_token_group_quant_fp8(
    x: torch.Tensor,
    group_size: int = 128,
    dtype: torch.dtype = torch.float8_e4m3fn,
    *,
    ue8m0: bool = False,
    least: float = 1e-10,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (..., K) and float32 scales (..., ceil(K / group_size)); amax is at least ``least``."""
    if x.shape[-1] == 0:
        return x.to(dtype), x.new_empty(x.shape, dtype=torch.float32)
    codes, scales = [], []
    for group in x.float().split(group_size, dim=-1):
        amax = group.abs().amax(-1, keepdim=True).clamp(min=least)
        # By a tensor: torch multiplies by the reciprocal of a number on a GPU.
        scale = amax / amax.new_tensor(LARGEST[dtype])
        if ue8m0:
            scale = power_of_two_above(scale)
        wide = (group / scale).clamp(-LARGEST[dtype], LARGEST[dtype])
        codes.append(wide.to(dtype).view(torch.uint8))
        scales.append(scale)
    return torch.cat(codes, -1).view(dtype), torch.cat(scales, -1)


def power_of_two_above(x: torch.Tensor) -> torch.Tensor:
    """The smallest power of two that is at least ``x``; infinities and NaN stay."""
    mantissa, exponent = torch.frexp(x)
    power = torch.ldexp(torch.ones_like(x), exponent - (mantissa == 0.5).int())
    return torch.where(torch.isfinite(x), power, x)


def silu_and_mul(x: torch.Tensor, limit: float | None = None) -> torch.Tensor:
    """SwiGLU of (..., 2 I) in float64, unrounded."""
    gate, up = x.double().chunk(2, dim=-1)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(gate) * up


def local_experts(
    topk_ids: torch.Tensor, num_local_experts: int, expert_map: torch.Tensor | None = None
) -> list[int]:
    """Local expert of each flat (token, slot) pair, -1 where there is none."""
    experts = []
    for expert in topk_ids.flatten().tolist():
        if expert_map is not None:
            expert = int(expert_map[expert]) if 0 <= expert < len(expert_map) else -1
        experts.append(expert if 0 <= expert < num_local_experts else -1)
    return experts


def route(
    topk_ids: torch.Tensor,
    num_local_experts: int,
    expert_map: torch.Tensor | None = None,
    *,
    alignment: int = 1,
    capacity: int | None = None,
) -> tuple[list[int], list[int], list[int], list[int]]:
    """``row_of, counts, ends, expert_of_row`` as lists, without the unused rows at their end."""
    experts = local_experts(topk_ids, num_local_experts, expert_map)
    row_of: list[int] = []
    expert_of_row: list[int] = []
    counts, ends = [], []
    end = 0
    for expert in range(num_local_experts):
        mine = [slot for slot, chosen in enumerate(experts) if chosen == expert]
        start = expert * capacity if capacity else -(-end // alignment) * alignment
        if mine:
            row_of += [-1] * (start - len(row_of)) + mine
            expert_of_row += [-1] * (start - len(expert_of_row)) + [expert] * len(mine)
        end = start + len(mine) if mine or capacity else end
        counts.append(len(mine))
        ends.append(end)
    return row_of, counts, ends, expert_of_row


def unpermute(
    y: torch.Tensor,
    row_of: torch.Tensor,
    num_tokens: int,
    topk: int,
    topk_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted sum of each token's rows in float64, unrounded."""
    out = torch.zeros(num_tokens, y.shape[1], dtype=torch.float64)
    for row, slot in enumerate(row_of.tolist()):
        if slot >= 0:
            token, j = divmod(slot, topk)
            weight = 1.0 if topk_weights is None else topk_weights[token, j].double()
            out[token] += weight * y[row].double()
    return out

"""The steps of a MoE layer between permute and unpermute, in a plan's layout and numerics."""

from __future__ import annotations

from typing import Any

import torch

from mate_plugin.kernels import gemm, moe, quant
from mate_plugin.layers.plan import ExpertsPlan

# 16-bit or float32 rows, or FP8 rows with their scales.
Rows = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
GATE, UP = 0, 1


def lay_out(
    plan: ExpertsPlan,
    topk_ids: torch.Tensor,
    num_experts: int,
    expert_map: torch.Tensor | None,
) -> tuple[moe.Routing, torch.Tensor]:
    """The rows in the plan's layout, and what the grouped GEMM wants to know about them."""
    routing = moe.route(topk_ids, num_experts, expert_map, alignment=plan.alignment_m)
    if plan.gemm_mode == "masked":
        # Counts may be read on a CPU: the busiest expert, and no worst case, sets the memory taken.
        capacity = max(int(routing.counts.max()), 1)
        routing = moe.route(topk_ids, num_experts, expert_map, capacity=capacity)
    by_mode = {"psum_expert": routing.ends, "per_token": routing.expert_of_row}
    info = by_mode.get(plan.gemm_mode, routing.counts)
    assert info is not None  # route() fills every field
    return routing, info


class GroupedGemm:
    """Rows times their experts' weights. ``info`` is what the layout says about the rows.

    ``masked`` rows are those of equal slots per expert, whatever the plan's layout is.
    """

    def __init__(
        self, plan: ExpertsPlan, info: torch.Tensor, num_experts: int, masked: bool = False
    ) -> None:
        self.info = info
        self.num_experts = num_experts
        self.masked = masked or plan.gemm_mode == "masked"
        self.options: dict[str, Any] = {
            "gemm_mode": plan.gemm_mode,
            "alignment_m": plan.alignment_m,
        }

    def __call__(
        self, rows: Rows, weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """``rows[R, K]`` times each row's expert of ``weight[E, N, K]``, as ``[R, N]``."""
        count = (rows[0] if isinstance(rows, tuple) else rows).shape[0]
        out = torch.empty(count, weight.shape[1], dtype=dtype, device=weight.device)
        self.into(rows, weight, scale, out)
        return out

    def into(
        self, rows: Rows, weight: torch.Tensor, scale: torch.Tensor, out: torch.Tensor
    ) -> None:
        """The same, written to ``out[R, N]`` (or ``[E, R / E, N]`` where rows are masked)."""
        weights = (weight, scale)
        if self.masked and isinstance(rows, tuple):
            slots = (self._slots(rows[0]), self._slots(rows[1]))
            gemm.masked_moe_gemm_8bit(slots, weights, self.info, self._slots(out))
        elif self.masked and isinstance(rows, torch.Tensor):
            gemm.masked_moe_gemm_w8a16(self._slots(rows), weights, self.info, self._slots(out))
        elif isinstance(rows, tuple):
            gemm.ragged_m_moe_gemm_8bit(rows, weights, self.info, out, **self.options)
        else:
            gemm.ragged_m_moe_gemm_w8a16(rows, weights, self.info, out, **self.options)

    def _slots(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(0, (self.num_experts, -1)) if rows.dim() == 2 else rows


def gate_up(
    plan: ExpertsPlan,
    grouped: GroupedGemm,
    entering: torch.Tensor,
    w13: torch.Tensor,
    w13_scale: torch.Tensor,
) -> torch.Tensor:
    """Gate and up of each row, ``[R, 2I]``."""
    rows: Rows = entering
    # GPUs round what leaves a GEMM; where activations are kept, sums stay in float32 to the end.
    dtype = torch.float32
    if plan.activation == "fp8":
        rows = quant.per_token_group_quant_fp8(entering, plan.block[1])
        dtype = entering.dtype
    width = w13.shape[1] // 2
    if width % plan.block[0] == 0:
        return grouped(rows, w13, w13_scale, dtype)
    # Gate and up each end in a partial block, so that their scales form two grids.
    inner = torch.empty(entering.shape[0], 2 * width, dtype=dtype, device=entering.device)
    blocks = w13_scale.shape[1] // 2
    for half in (GATE, UP):
        columns = slice(half * width, (half + 1) * width)
        scale = w13_scale[:, half * blocks : (half + 1) * blocks]
        grouped.into(rows, w13[:, columns], scale, inner[:, columns])
    return inner


def swiglu(plan: ExpertsPlan, inner: torch.Tensor, dtype: torch.dtype) -> Rows:
    """``silu(gate) * up`` of ``inner[R, 2I]``, as the second GEMM takes it: ``dtype`` or FP8."""
    if plan.activation == "fp8":
        # GPUs run two kernels here, with a 16-bit product between them.
        return quant.silu_and_mul_quant_fp8(
            inner, plan.block[1], limit=plan.limit, round_first=True
        )
    return quant.silu_and_mul(inner, limit=plan.limit).to(dtype)

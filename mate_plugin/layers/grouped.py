"""The steps of a MoE layer between permute and unpermute, in a plan's layout and numerics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mate_plugin.kernels import gemm, moe, quant
from mate_plugin.kernels.packing import as_rows, take_rows
from mate_plugin.layers.plan import ExpertsPlan

# 16-bit or float32 rows, or FP8 rows with their scales.
Rows = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
GATE, UP = 0, 1
RAGGED: dict[str, Callable[..., Any]] = {
    "8bit": gemm.ragged_m_moe_gemm_8bit,
    "16bit": gemm.ragged_m_moe_gemm_16bit,
    "w8a16": gemm.ragged_m_moe_gemm_w8a16,
}
MASKED: dict[str, Callable[..., Any]] = {
    "8bit": gemm.masked_moe_gemm_8bit,
    "16bit": gemm.masked_moe_gemm_16bit,
    "w8a16": gemm.masked_moe_gemm_w8a16,
}


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
        # A GPU's are not: a token chooses an expert once, so that none has more rows than tokens.
        on_cpu = topk_ids.is_cpu
        capacity = max(int(routing.counts.max()) if on_cpu else topk_ids.shape[0], 1)
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
        self, rows: Rows, weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """``rows[..., K]`` times each row's expert of ``weight[E, N, K]``, as ``[..., N]``."""
        out = weight.new_empty(*_shape(rows)[:-1], as_rows(weight).shape[1], dtype=dtype)
        self.into(rows, weight, scale, out)
        return out

    def into(
        self,
        rows: Rows,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        out: torch.Tensor,
        signal: torch.Tensor | None = None,
    ) -> tuple[int, int] | None:
        """The same, written to ``out[..., N]``. Masked rows may be flat, ``[R, K]``, or have a
        dimension of slots, ``[E, R / E, K]``; their progress is reported to a ``signal``, whose
        ``(block_m, threshold)`` is returned then."""
        form = "8bit" if isinstance(rows, tuple) else "16bit" if scale is None else "w8a16"
        weights = weight if scale is None else (weight, scale)
        if not self.masked:
            RAGGED[form](rows, weights, self.info, out, **self.options)
            return None
        slots = tuple(map(self._slots, rows)) if isinstance(rows, tuple) else self._slots(rows)
        overlap = signal is not None
        result = MASKED[form](
            slots, weights, self.info, self._slots(out), enable_overlap=overlap, signal=signal
        )
        return result[2:] if overlap else None

    def _slots(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(0, (self.num_experts, -1)) if rows.dim() == 2 else rows


def _shape(rows: Rows) -> torch.Size:
    return (rows[0] if isinstance(rows, tuple) else rows).shape


def entering_rows(
    plan: ExpertsPlan, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``hidden`` as the first GEMM takes it: as it is, or FP8 codes and their scales."""
    if plan.activation != "fp8":
        return hidden, None
    return quant.per_token_group_quant_fp8(hidden, plan.block[1])


def gate_up(
    plan: ExpertsPlan,
    grouped: GroupedGemm,
    entering: Rows,
    w13: torch.Tensor,
    w13_scale: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Gate and up of each row, ``[..., 2I]``, in float32 or ``dtype``, the layer's of 16 bits."""
    rows = entering
    if isinstance(entering, torch.Tensor):
        codes, scale = entering_rows(plan, entering)
        rows = codes if scale is None else (codes, scale)
    if w13_scale is None:
        return grouped(rows, w13, None, dtype)
    # The kernels of 8 x 8 bits round what they write, as GPUs do; those of 8 x 16 need not.
    dtype = dtype if isinstance(rows, tuple) else torch.float32
    width = as_rows(w13).shape[1] // 2
    if width % plan.block[0] == 0:
        return grouped(rows, w13, w13_scale, dtype)
    # Gate and up each end in a partial block, so that their scales form two grids.
    inner = w13.new_empty(*_shape(rows)[:-1], 2 * width, dtype=dtype)
    blocks = w13_scale.shape[1] // 2
    for half in (GATE, UP):
        first, last = half * width, (half + 1) * width
        scale = w13_scale[:, half * blocks : (half + 1) * blocks]
        grouped.into(rows, take_rows(w13, first, last), scale, inner[..., first:last])
    return inner


def swiglu(plan: ExpertsPlan, inner: torch.Tensor, dtype: torch.dtype) -> Rows:
    """``silu(gate) * up`` of ``inner[..., 2I]``, as the second GEMM takes it: ``dtype`` or FP8."""
    if plan.activation == "fp8":
        # GPUs run two kernels here, with a 16-bit product between them.
        return quant.silu_and_mul_quant_fp8(
            inner, plan.block[1], limit=plan.limit, round_first=True
        )
    return quant.silu_and_mul(inner, limit=plan.limit).to(dtype)

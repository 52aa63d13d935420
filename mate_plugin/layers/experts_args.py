"""What callers may ask of a MoE layer together, and what it means for the router weights."""

from __future__ import annotations

import torch

from mate_plugin.kernels.checks import contract, describe, pair
from mate_plugin.layers.grouped import Rows
from mate_plugin.layers.plan import ExpertsPlan
from mate_plugin.layers.weights import weight_bits

Weights = torch.Tensor | None

_CHECK_FP8_ROWS = contract(
    "masked_gemm",
    "hidden[0]: fp8 [E, Mx, H] rows",
    "hidden[1]: f32 [E, Mx, G] major",
    where={"G": "ceil_div(H, block)"},
)


def router_weights(
    topk_weights: Weights,
    topk_ids: torch.Tensor,
    on_input: bool,
    factor: float | None,
    no_combine: bool,
    keep: bool,
) -> tuple[Weights, Weights]:
    """The weights ``[T, topk]`` of the rows that enter the experts and of those that leave them."""
    if on_input and topk_weights is None:
        raise ValueError("topk_weights: expected [T, topk] to apply to the input, got None")
    if keep and not no_combine:
        raise ValueError("keep_router_weight: expected False without no_combine, got True")
    if keep and topk_weights is None:
        raise ValueError("topk_weights: expected [T, topk] beside keep_router_weight, got None")
    if factor is not None and (isinstance(factor, bool) or not isinstance(factor, (int, float))):
        raise TypeError(f"routed_scaling_factor: expected a number or None, got {describe(factor)}")
    entering = topk_weights if on_input else None
    leaving = None if on_input or (no_combine and not keep) else topk_weights
    if factor is None or factor == 1:
        return entering, leaving
    if leaving is None:
        shape = tuple(topk_ids.shape)
        return entering, torch.full(shape, factor, dtype=torch.float32, device=topk_ids.device)
    return entering, leaving.float() * factor


def check_standard(
    plan: ExpertsPlan,
    hidden: torch.Tensor,
    topk_ids: torch.Tensor,
    w13: torch.Tensor,
    w13_scale: torch.Tensor | None,
    out: torch.Tensor,
    no_combine: bool,
) -> None:
    """Raise unless hidden, weights and out are what ``plan`` and ``no_combine`` say."""
    _check_weight_bits(plan, hidden, w13, w13_scale)
    if no_combine:
        shape = (*topk_ids.shape, hidden.shape[1])
        if tuple(out.shape) != shape or not out.is_contiguous():
            raise ValueError(
                f"out: expected a contiguous [T, topk, H] = {list(shape)} beside no_combine,"
                f" got {list(out.shape)} with strides {list(out.stride())}"
            )


def check_batched(
    plan: ExpertsPlan, hidden: Rows, w13: torch.Tensor, w13_scale: torch.Tensor | None
) -> None:
    """Raise unless the rows are in a form that goes with the weights of ``plan``."""
    if isinstance(hidden, torch.Tensor):
        _check_weight_bits(plan, hidden, w13, w13_scale)
        return
    rows, scale = pair("hidden", hidden)
    if plan.weight_bits == 16:
        raise TypeError(
            f"hidden: expected a {w13.dtype} tensor beside 16-bit weights, got (rows, scale)"
        )
    _check_weight_bits(plan, rows, w13, w13_scale)
    _CHECK_FP8_ROWS(rows, scale, plan.block[1])


def _check_weight_bits(
    plan: ExpertsPlan, hidden: torch.Tensor, w13: torch.Tensor, w13_scale: torch.Tensor | None
) -> None:
    if weight_bits(w13_scale) != plan.weight_bits:
        wanted = "None" if plan.weight_bits == 16 else "a scale"
        raise ValueError(
            f"w13_scale: expected {wanted} beside a plan for {plan.weight_bits}-bit weights,"
            f" got {describe(w13_scale)}"
        )
    if plan.packed and hidden.dtype == torch.float16:
        raise TypeError("hidden: expected torch.bfloat16 beside packed weights, got torch.float16")
    if plan.weight_bits == 16 and hidden.dtype != w13.dtype:
        raise TypeError(f"hidden: expected {w13.dtype}, the dtype of w13, got {hidden.dtype}")

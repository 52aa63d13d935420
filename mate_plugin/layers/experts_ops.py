"""The MoE layer as functions of a plan and its weights.

A whole layer is one torch op, so that torch.compile sees one opaque call and an eager call goes
straight through.
"""

from __future__ import annotations

from typing import Any

import torch

from mate_plugin import report
from mate_plugin.kernels import fused_moe, masked, moe
from mate_plugin.kernels.packing import packed_view
from mate_plugin.layers.experts_args import check_batched, check_standard, router_weights
from mate_plugin.layers.grouped import GroupedGemm, Rows, entering_rows, gate_up, lay_out, swiglu
from mate_plugin.layers.plan import ExpertsPlan, from_key
from mate_plugin.layers.weights import shape_name

# (out, signal, block_m, threshold)
Overlap = tuple[torch.Tensor, torch.Tensor, int, int]


def apply_experts(
    plan: ExpertsPlan,
    hidden: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
    w13: torch.Tensor,
    w13_scale: torch.Tensor | None,
    w2: torch.Tensor,
    w2_scale: torch.Tensor | None,
    *,
    out: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    apply_router_weight_on_input: bool = False,
    routed_scaling_factor: float | None = None,
    no_combine: bool = False,
    keep_router_weight: bool = False,
) -> torch.Tensor:
    """:meth:`.experts.Experts.apply` for callers that keep plan and weights themselves."""
    entering, leaving = router_weights(
        topk_weights,
        topk_ids,
        apply_router_weight_on_input,
        routed_scaling_factor,
        no_combine,
        keep_router_weight,
    )
    check_standard(plan, hidden, topk_ids, w13, w13_scale, out, no_combine)
    run = torch.ops.mate_plugin.experts if torch.compiler.is_compiling() else _experts
    run(
        hidden,
        topk_ids,
        entering,
        leaving,
        w13,
        w13_scale,
        w2,
        w2_scale,
        expert_map,
        out,
        no_combine,
        plan.key,
    )
    return out


def apply_batched_experts(
    plan: ExpertsPlan,
    hidden: Rows,
    counts: torch.Tensor,
    w13: torch.Tensor,
    w13_scale: torch.Tensor | None,
    w2: torch.Tensor,
    w2_scale: torch.Tensor | None,
    *,
    out: torch.Tensor,
    signal: torch.Tensor | None = None,
) -> torch.Tensor | Overlap:
    """:meth:`.experts.Experts.apply_batched` for callers that keep plan and weights themselves."""
    check_batched(plan, hidden, w13, w13_scale)
    rows, scale = hidden if isinstance(hidden, tuple) else (hidden, None)
    arguments = (rows, scale, counts, w13, w13_scale, w2, w2_scale, out, signal, plan.key)
    units = masked.host_signal_units(w2.shape[1])
    if torch.compiler.is_compiling():
        torch.ops.mate_plugin.batched_experts(*arguments)
    else:
        units = _batched(*arguments) or units
    return out if signal is None else (out, signal, *units)


def _experts(
    hidden: torch.Tensor,
    topk_ids: torch.Tensor,
    weights_in: torch.Tensor | None,
    weights_out: torch.Tensor | None,
    w13: torch.Tensor,
    w13_scale: torch.Tensor | None,
    w2: torch.Tensor,
    w2_scale: torch.Tensor | None,
    expert_map: torch.Tensor | None,
    out: torch.Tensor,
    no_combine: bool,
    key: str,
) -> None:
    plan = from_key(key)
    report.layer_called("moe", shape_name(w2), plan.describe())
    if hidden.shape[0] == 0:
        return
    if plan.packed:
        w13, w2 = packed_view(w13), packed_view(w2)
    if plan.fused and weights_in is None and not no_combine:
        rows, scale = entering_rows(plan, hidden)
        fused_moe.fused_experts(
            rows,
            scale,
            topk_ids,
            weights_out,
            w13,
            w13_scale,
            w2,
            w2_scale,
            out,
            dtype=hidden.dtype,
            block=plan.block,
            limit=plan.limit,
            expert_map=expert_map,
        )
        return
    routing, info = lay_out(plan, topk_ids, w13.shape[0], expert_map)
    entering = _permuted(plan, hidden, routing, weights_in)
    grouped = GroupedGemm(plan, info, w13.shape[0])
    inner = gate_up(plan, grouped, entering, w13, w13_scale, hidden.dtype)
    leaving = grouped(swiglu(plan, inner, hidden.dtype), w2, w2_scale, inner.dtype)
    if no_combine:
        # Each (token, slot) pair takes its row back as a token with a single slot would.
        routing, out = routing._replace(topk=1), out.flatten(0, 1)
        weights_out = None if weights_out is None else weights_out.reshape(-1, 1)
    moe.unpermute(leaving, routing, weights_out, out)


def _permuted(
    plan: ExpertsPlan,
    hidden: torch.Tensor,
    routing: moe.Routing,
    weights: torch.Tensor | None,
) -> Rows:
    """The rows of each expert. Tokens are rounded once, not each of their rows, unless they are
    weighted first."""
    topk = routing.topk
    assert topk is not None
    if weights is not None:
        return moe.permute(hidden, routing, topk, weights)
    rows, scale = entering_rows(plan, hidden)
    permuted = moe.permute(rows, routing, topk)
    return permuted if scale is None else (permuted, moe.permute(scale, routing, topk))


def _batched(
    hidden: torch.Tensor,
    hidden_scale: torch.Tensor | None,
    counts: torch.Tensor,
    w13: torch.Tensor,
    w13_scale: torch.Tensor | None,
    w2: torch.Tensor,
    w2_scale: torch.Tensor | None,
    out: torch.Tensor,
    signal: torch.Tensor | None,
    key: str,
) -> tuple[int, int] | None:
    plan = from_key(key)
    report.layer_called("moe", shape_name(w2), plan.describe())
    if hidden.shape[1] == 0:
        return None
    if plan.packed:
        w13, w2 = packed_view(w13), packed_view(w2)
    rows, dtype = (
        ((hidden, hidden_scale), out.dtype) if hidden_scale is not None else (hidden, hidden.dtype)
    )
    slots = GroupedGemm(plan, counts, hidden.shape[0], masked=True)
    inner = gate_up(plan, slots, rows, w13, w13_scale, dtype)
    return slots.into(swiglu(plan, inner, dtype), w2, w2_scale, out, signal)


def _batched_op(*arguments: Any) -> None:
    _batched(*arguments)


_library = torch.library.Library("mate_plugin", "FRAGMENT")
_library.define(
    "experts(Tensor hidden, Tensor topk_ids, Tensor? weights_in, Tensor? weights_out, Tensor w13,"
    " Tensor? w13_scale, Tensor w2, Tensor? w2_scale, Tensor? expert_map, Tensor(a!) out,"
    " bool no_combine, str key) -> ()"
)
_library.define(
    "batched_experts(Tensor hidden, Tensor? hidden_scale, Tensor counts, Tensor w13,"
    " Tensor? w13_scale, Tensor w2, Tensor? w2_scale, Tensor(a!) out, Tensor(b!)? signal, str key)"
    " -> ()"
)
for _name, _function in {"experts": _experts, "batched_experts": _batched_op}.items():
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _function, _device)
    torch.library.register_fake(f"mate_plugin::{_name}", lambda *_: None, lib=_library)

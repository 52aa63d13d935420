"""SGLang's dispatch formats in and out of the MoE layer."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from mate_plugin.config import GPUS
from mate_plugin.layers.experts_ops import apply_batched_experts, apply_experts
from mate_plugin.layers.plan import ExpertsPlan
from mate_plugin.layers.weights import check_weights


def check_config(config: Any) -> None:
    """Raise ValueError, naming the field, for a MoeRunnerConfig that our experts do not serve."""
    for name, wanted in (
        ("activation", "silu"),
        ("is_gated", True),
        ("gemm1_alpha", None),
        ("gemm1_beta", None),
        ("gemm1_clamp_limit", None),
        ("silu_mul_keep_fp32", False),
    ):
        found = getattr(config, name, wanted)
        if found != wanted:
            raise ValueError(f"{name}: the MoE runner mate serves {wanted}, got {found}")


def check_quant_info(info: Any, block: tuple[int, int]) -> None:
    """Raise, naming the field, for a MoeQuantInfo that our experts do not serve.

    Args:
        block: (N, K) of one weight scale, where ``info`` does not say.

    Raises:
        ValueError: weights in another layout or quantisation, or that do not fit together.
        TypeError: weights of a dtype that does not go with their scales.
    """
    for name in ("b13", "b2", "w13_zp", "w2_zp", "a13_scale", "a2_scale"):
        if getattr(info, name, None) is not None:
            raise ValueError(f"{name}: the MoE runner mate serves None, got a tensor")
    for name in (
        "use_mxfp8",
        "use_int8_w8a8",
        "use_int8_w8a16",
        "use_int4_w4a16",
        "per_channel_quant",
        "is_fp4_experts",
        "fuse_swiglu_interleaved",
    ):
        if getattr(info, name, False):
            raise ValueError(f"{name}: the MoE runner mate serves False, got True")
    if info.w13_scale is not None and info.block_shape is not None:
        block = tuple(info.block_shape)
    check_weights(info.w13_weight, info.w13_scale, info.w2_weight, info.w2_scale, block)


def run(plan: ExpertsPlan, dispatch_output: Any, quant_info: Any, config: Any) -> Any:
    """Put what a dispatcher hands over through the experts; returns what its combine step takes.

    Raises NotImplementedError for a dispatch format that is neither standard nor DeepEP's low
    latency, ValueError for contents that our experts do not serve.
    """
    form = dispatch_output.format
    if form.is_standard():
        return _standard(plan, dispatch_output, _weights(quant_info), config)
    if form.is_deepep_ll():
        return _low_latency(plan, dispatch_output, _weights(quant_info), config)
    raise NotImplementedError(
        f"dispatch format: the MoE runner mate serves standard and deepep_ll, got {form.value}"
    )


def scaling_factor(config: Any, device: torch.device) -> float | None:
    """The factor of the experts' sum that is left to the runner.

    SGLang's models multiply by it themselves, except on CUDA and MUSA where runners do; whoever
    asks for rows that are not combined does so too.
    """
    if config.no_combine:
        return None
    return config.routed_scaling_factor if device.type in GPUS else None


@functools.cache
def _between_fp8(plan: ExpertsPlan) -> ExpertsPlan:
    """SGLang's masked path rounds the second GEMM's rows too, where FP8 rows enter the first."""
    return dataclasses.replace(plan, activation="fp8") if plan.weight_bits == 8 else plan


def _weights(quant_info: Any) -> tuple[torch.Tensor | None, ...]:
    return (
        quant_info.w13_weight,
        quant_info.w13_scale,
        quant_info.w2_weight,
        quant_info.w2_scale,
    )


def _standard(plan: ExpertsPlan, given: Any, weights: Any, config: Any) -> Any:
    from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput
    from sglang.srt.layers.moe.topk import TopKOutputChecker

    if given.hidden_states_scale is not None:
        raise ValueError("hidden_states_scale: expected None beside 16-bit rows, got a tensor")
    topk = given.topk_output
    if TopKOutputChecker.format_is_bypassed(topk):
        topk = topk.to_standard()
    if not TopKOutputChecker.format_is_standard(topk):
        raise NotImplementedError(
            f"topk_output: the MoE runner mate serves ids and weights, got {type(topk).__name__}"
        )
    hidden = given.hidden_states
    shape = hidden.shape
    if config.no_combine:
        shape = (hidden.shape[0], topk.topk_ids.shape[1], hidden.shape[1])
    out = apply_experts(
        plan,
        hidden,
        topk.topk_weights,
        # The dispatcher has made them local, with -1 for the experts of other ranks.
        topk.topk_ids,
        *weights,
        out=torch.empty(shape, dtype=hidden.dtype, device=hidden.device),
        apply_router_weight_on_input=config.apply_router_weight_on_input,
        routed_scaling_factor=scaling_factor(config, hidden.device),
        no_combine=config.no_combine,
        keep_router_weight=config.no_combine_keep_router_weight,
    )
    return StandardCombineInput(hidden_states=out)


def _low_latency(plan: ExpertsPlan, given: Any, weights: Any, config: Any) -> Any:
    from sglang.srt.layers.moe.token_dispatcher import DeepEPLLCombineInput

    rows, scale = given.hidden_states, given.hidden_states_scale
    runner = getattr(config.layer, "runner", None)
    overlap = getattr(runner, "down_gemm_overlap_args", None)
    out = torch.empty(rows.shape, dtype=torch.bfloat16, device=rows.device)
    if overlap is not None and overlap.start_event is not None:
        overlap.start_event.record()
    units = apply_batched_experts(
        plan if scale is None else _between_fp8(plan),
        rows if scale is None else (rows, scale),
        given.masked_m,
        *weights,
        out=out,
        signal=None if overlap is None else overlap.signal,
    )
    meta = getattr(runner, "meta_overlap_args", None)
    if meta is not None and overlap is not None:
        meta["block_m"], meta["threshold"] = units[-2:]
    return DeepEPLLCombineInput(
        hidden_states=out, topk_ids=given.topk_ids, topk_weights=given.topk_weights
    )

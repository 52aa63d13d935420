"""vLLM's experts interface around the MoE layer; vLLM is imported when the classes are made."""

# vLLM fixes the signatures of what it calls.
# ruff: noqa: ARG002, ARG004

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import Any

import torch

from mate_plugin import report
from mate_plugin.config import settings
from mate_plugin.layers import vllm_device
from mate_plugin.layers.experts_ops import apply_batched_experts, apply_experts
from mate_plugin.layers.plan import BLOCKS
from mate_plugin.layers.weights import check_weights, pack_in_place, packs, shape_name

# What vLLM hands to `apply`; another set means another contract.
APPLY_ARGUMENTS = {
    "output",
    "hidden_states",
    "w1",
    "w2",
    "topk_weights",
    "topk_ids",
    "activation",
    "global_num_experts",
    "expert_map",
    "a1q_scale",
    "a2_scale",
    "workspace13",
    "workspace2",
    "expert_tokens_meta",
    "apply_router_weight_on_input",
}


def missing() -> list[str]:
    """What this vLLM lacks for the experts classes."""
    import vllm.model_executor.layers.fused_moe.modular_kernel as mk

    base = getattr(mk, "FusedMoEExpertsModular", None)
    if base is None:
        return ["modular_kernel.FusedMoEExpertsModular"]
    wanted = (
        "activation_format",
        "expects_unquantized_inputs",
        "finalize_weight_and_reduce_impl",
        "is_supported_config",
        "workspace_shapes",
    )
    lacking = [f"FusedMoEExpertsModular.{name}" for name in wanted if not hasattr(base, name)]
    arguments = set(inspect.signature(base.apply).parameters) - {"self"}
    if arguments != APPLY_ARGUMENTS:
        changed = ", ".join(sorted(arguments ^ APPLY_ARGUMENTS))
        lacking.append(f"the known arguments of FusedMoEExpertsModular.apply (differ in {changed})")
    return lacking


@functools.lru_cache(maxsize=1)
def experts_classes() -> tuple[Any, Any]:
    """The experts for vLLM's Standard and BatchedExperts formats."""
    import vllm.model_executor.layers.fused_moe.modular_kernel as mk
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import (
        TopKWeightAndReduceDelegate,
        TopKWeightAndReduceNoOP,
    )
    from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8Dynamic128Sym
    from vllm.platforms import current_platform

    class MateExpertsBase(mk.FusedMoEExpertsModular):
        """What both formats share: weights in FP8 blocks, activations in 16 bits on arrival."""

        def __init__(self, moe_config, quant_config, max_num_tokens=None, num_dispatchers=None):
            super().__init__(moe_config, quant_config, max_num_tokens, num_dispatchers)
            self.plan = vllm_device.plan(self.activation_config.clamp_limit)

        @property
        def expects_unquantized_inputs(self) -> bool:
            return True

        @staticmethod
        def is_supported_config(cls, moe_config, weight_key, activation_key, activation_format):
            supported, reason = mk.FusedMoEExperts.is_supported_config(
                cls, moe_config, weight_key, activation_key, activation_format
            )
            if supported and moe_config.has_bias:
                return False, "kernel does not support expert biases"
            if supported and moe_config.in_dtype not in (torch.bfloat16, torch.float16):
                return False, f"kernel does not support {moe_config.in_dtype} activations"
            return supported, reason

        @staticmethod
        def _supports_current_device() -> bool:
            return vllm_device.served("moe")

        @staticmethod
        def _supports_no_act_and_mul() -> bool:
            return False

        @staticmethod
        def _supports_activation(activation) -> bool:
            return activation == MoEActivation.SILU

        @staticmethod
        def _supports_quant_scheme(weight_key, activation_key) -> bool:
            if weight_key is None or activation_key != kFp8Dynamic128Sym:
                return False
            scale = weight_key.scale
            block = (scale.group_shape.row, scale.group_shape.col)
            return weight_key.dtype == torch.float8_e4m3fn and scale.static and block in BLOCKS

        @staticmethod
        def _supports_parallel_config(moe_parallel_config) -> bool:
            return True

        @staticmethod
        def _supports_batch_invariance() -> bool:
            # Each row is summed in one order, whatever else is in the batch: tested on CPUs only.
            return current_platform.is_cpu()

        def build(self, w13: torch.Tensor, w2: torch.Tensor) -> None:
            """Check the weights against their scales once, when the layer is ready."""
            check_weights(w13, self.w1_scale, w2, self.w2_scale, self.plan.block)
            packed = settings().pack_weights and packs(w13, w2, self.moe_config.in_dtype)
            self.plan = replace(self.plan, packed=packed)
            report.layer_built("moe", shape_name(w2), self.plan.describe())

        def pack(self, w13: torch.Tensor, w2: torch.Tensor) -> None:
            """Rearrange weights that were loaded as rows, where the plan wants it."""
            if self.plan.packed:
                pack_in_place(w13, w2)

    class MateExperts(MateExpertsBase):
        """Tokens as they come, each with its experts; returns the weighted sum."""

        @staticmethod
        def activation_format():
            return mk.FusedMoEActivationFormat.Standard

        def finalize_weight_and_reduce_impl(self):
            return TopKWeightAndReduceNoOP()

        def workspace_shapes(self, M, N, K, topk, global_e, local_e, tokens_meta, activation):
            return (0,), (0,), (M, K)

        def apply(
            self,
            output,
            hidden_states,
            w1,
            w2,
            topk_weights,
            topk_ids,
            activation,
            global_num_experts,
            expert_map,
            a1q_scale,
            a2_scale,
            workspace13,
            workspace2,
            expert_tokens_meta,
            apply_router_weight_on_input,
        ) -> None:
            # vLLM's prepare step has scaled the input already where weights go there.
            weights = None if apply_router_weight_on_input else topk_weights
            apply_experts(
                self.plan,
                hidden_states,
                weights,
                topk_ids,
                w1,
                self.w1_scale,
                w2,
                self.w2_scale,
                out=output,
                expert_map=expert_map,
            )

    class MateBatchedExperts(MateExpertsBase):
        """Tokens sorted by expert into equal slots; weights are applied where they are combined."""

        @staticmethod
        def activation_format():
            return mk.FusedMoEActivationFormat.BatchedExperts

        def finalize_weight_and_reduce_impl(self):
            return TopKWeightAndReduceDelegate()

        def workspace_shapes(self, M, N, K, topk, global_e, local_e, tokens_meta, activation):
            slots = self.max_num_tokens * self.num_dispatchers
            return (0,), (0,), (local_e, slots, K)

        def apply(
            self,
            output,
            hidden_states,
            w1,
            w2,
            topk_weights,
            topk_ids,
            activation,
            global_num_experts,
            expert_map,
            a1q_scale,
            a2_scale,
            workspace13,
            workspace2,
            expert_tokens_meta,
            apply_router_weight_on_input,
        ) -> None:
            apply_batched_experts(
                self.plan,
                hidden_states,
                expert_tokens_meta.expert_num_tokens,
                w1,
                self.w1_scale,
                w2,
                self.w2_scale,
                out=output,
            )

    return MateExperts, MateBatchedExperts

"""vLLM's seam for FP8 checkpoints: a quantisation config of ours in the place of its "fp8"."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

from mate_plugin.config import settings
from mate_plugin.layers import vllm_device, vllm_moe
from mate_plugin.layers.seams import lacking
from mate_plugin.report import Hook

NAME = "vllm.moe"
logger = logging.getLogger("vllm.mate_plugin")


def install() -> Hook:
    """Register the config, or say what stands against it."""
    try:
        absent = missing() + vllm_moe.missing()
    except (ImportError, AttributeError) as error:
        absent = [str(error)]
    if absent:
        return Hook(NAME, False, f"this vLLM lacks {', '.join(absent)}")
    try:
        plan = vllm_device.plan()
    except (ValueError, NotImplementedError) as error:
        return Hook(NAME, False, str(error))
    config_class()
    return Hook(NAME, True, f"FP8 block MoE: {plan.describe()}")


def missing() -> list[str]:
    """What this vLLM lacks for the config and the MoE method."""
    from vllm.model_executor.layers import quantization
    from vllm.model_executor.layers.fused_moe import config
    from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
    from vllm.model_executor.layers.quantization import fp8

    wanted: dict[Any, tuple[str, ...]] = {
        quantization: ("register_quantization_config",),
        config: ("fp8_w8a16_moe_quant_config",),
        Fp8MoeBackend: ("TRITON",),
        fp8: ("Fp8Config", "Fp8MoEMethod"),
        fp8.Fp8Config: ("get_quant_method",),
        fp8.Fp8MoEMethod: ("_init_moe_kernel", "_setup_kernel", "get_fused_moe_quant_config"),
    }
    return lacking(wanted)


def split_blocks(moe: Any, block: Sequence[int]) -> str | None:
    """Why the share of the experts that tensor parallelism leaves to this process, described by
    ``moe``, cannot be served in blocks of (N, K), or None."""
    inner = moe.intermediate_size_per_partition
    if moe.tp_size == 1 or not any(inner % size for size in block):
        return None
    return (
        f"--tensor-parallel-size {moe.tp_size}: expected an intermediate size per process in whole"
        f" blocks of {block[0]}x{block[1]}, got {inner} of {moe.intermediate_size}"
        " (--enable-expert-parallel leaves experts whole)"
    )


@functools.lru_cache(maxsize=1)
def config_class() -> type:
    """Make and register the config (once per process)."""
    import vllm.model_executor.layers.fused_moe.modular_kernel as mk
    from vllm.model_executor.layers.fused_moe import RoutedExperts
    from vllm.model_executor.layers.fused_moe.config import fp8_w8a16_moe_quant_config
    from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm.model_executor.layers.quantization.fp8 import Fp8Config, Fp8MoEMethod
    from vllm.model_executor.layers.quantization.utils.quant_utils import (
        GroupShape,
        create_fp8_quant_key,
        kFp8Dynamic128Sym,
    )

    class MateFp8MoEMethod(Fp8MoEMethod):
        """FP8 block experts on our kernels; every other FP8 layer stays with vLLM."""

        experts_cls: Any
        moe_block_shape: Any
        weight_scale_refine: Any

        def __init__(self, quant_config, layer) -> None:
            super().__init__(quant_config, layer)
            theirs = self.experts_cls
            self.experts_reason = self._adopt()
            if self.experts_reason is None:
                if theirs is not None:
                    line = f"FP8 MoE layers run on mate-plugin and not on {theirs.__name__}"
                    _say_once(logging.INFO, line)
                return
            if not self.block_quant:
                return
            problem = f"mate-plugin cannot serve these FP8 experts: {self.experts_reason}"
            if self.experts_cls is None:
                raise ValueError(f"{layer.layer_name}: {problem}, and vLLM has none for them here")
            if settings().strict:
                raise ValueError(f"{layer.layer_name}: {problem}; strict is set")
            _say_once(logging.WARNING, f"{problem}; they stay with {self.experts_cls.__name__}")

        def _adopt(self) -> str | None:
            """Take the layer over, or return why not."""
            if not self.block_quant:
                return "the weights are not quantised in blocks"
            if self.moe.moe_backend != "auto":
                return f"another MoE backend is asked for: {self.moe.moe_backend}"
            if reason := split_blocks(self.moe, self.weight_block_size):
                return reason
            if reason := vllm_device.unproved(self.moe.moe_parallel_config):
                return reason
            block = self.moe_block_shape
            if self.moe.tp_size == 1:
                # vLLM refines the grid of scales where a shard ends within a block. The kernels
                # take partial blocks, so unsharded weights keep the checkpoint's own grid.
                block = self.weight_block_size
            batched: bool = self.moe.moe_parallel_config.use_batched_activation_format
            standard_cls, batched_cls = vllm_moe.experts_classes()
            experts_cls = batched_cls if batched else standard_cls
            supported, reason = experts_cls.is_supported_config(
                experts_cls,
                self.moe,
                create_fp8_quant_key(static=True, group_shape=GroupShape(*block)),
                kFp8Dynamic128Sym,
                experts_cls.activation_format(),
            )
            if not supported:
                return reason
            if block is not self.moe_block_shape or self.moe.tp_size == 1:
                self.moe_block_shape = block
                partial = self.moe.intermediate_size_per_partition % block[0] != 0
                # A refinement by 1 makes vLLM size the scales in whole-or-partial blocks.
                self.weight_scale_refine = (1, 1) if partial else None
            self.experts_cls = experts_cls
            # Names the layout only: weights and scales stay as the checkpoint has them.
            self.fp8_backend = (
                Fp8MoeBackend.BATCHED_TRITON
                if experts_cls.activation_format() == mk.FusedMoEActivationFormat.BatchedExperts
                else Fp8MoeBackend.TRITON
            )
            return None

        def get_fused_moe_quant_config(self, layer):
            if self.experts_reason is not None:
                return super().get_fused_moe_quant_config(layer)
            return fp8_w8a16_moe_quant_config(
                w1_scale=layer.w13_weight_scale_inv,
                w2_scale=layer.w2_weight_scale_inv,
                block_shape=self.moe_block_shape,
                gemm1_clamp_limit=getattr(layer, "swiglu_limit", None),
            )

        def _setup_kernel(self, layer, *args, **kwargs) -> None:
            # Not where vLLM takes weights over that went through here already.
            super()._setup_kernel(layer, *args, **kwargs)
            if self.experts_reason is None:
                self.moe_kernel.fused_experts.pack(layer.w13_weight, layer.w2_weight)

        def _init_moe_kernel(self, layer) -> None:
            super()._init_moe_kernel(layer)
            if self.experts_reason is None:
                self.moe_kernel.fused_experts.build(layer.w13_weight, layer.w2_weight)

    @register_quantization_config("fp8")
    class MateFp8Config(Fp8Config):
        """vLLM's "fp8" with the MoE method exchanged."""

        def get_quant_method(self, layer, prefix):
            method = super().get_quant_method(layer, prefix)
            if type(method) is Fp8MoEMethod and isinstance(layer, RoutedExperts):
                return MateFp8MoEMethod(self, layer)
            return method

    return MateFp8Config


@functools.cache
def _say_once(level: int, line: str) -> None:
    logger.log(level, "%s", line)

"""SGLang's seam for block-FP8 linear layers on the platform mate_cpu: a linear method of ours."""

from __future__ import annotations

import functools
from typing import Any

import torch

from mate_plugin.config import settings
from mate_plugin.layers.linear import block_linear, check_scale, note_layer
from mate_plugin.layers.plan import (
    BLOCKS,
    block_of,
    implementation,
    phrase,
    resolve_activation,
)
from mate_plugin.report import Hook

NAME = "sglang.linear"
_FP8 = "sglang.srt.layers.quantization.fp8"
TARGETS = (
    f"{_FP8}.Fp8Config.get_quant_method",
    f"{_FP8}.Fp8LinearMethod.apply",
    f"{_FP8}.Fp8LinearMethod.process_weights_after_loading",
    "sglang.srt.layers.linear.WEIGHT_LOADER_V2_SUPPORTED",
)


def install() -> Hook:
    """Make the method known to SGLang, or say what stands against it."""
    try:
        block_of(settings().scale_granularity)
        impl, reason = implementation("batched_gemm", "cpu")
    except (ValueError, NotImplementedError) as error:
        return Hook(NAME, False, str(error))
    method_class()
    form = phrase(resolve_activation(settings().activation, "cpu"))
    return Hook(NAME, True, f"block-FP8 linear: {form}, {impl}: {reason}")


@functools.lru_cache(maxsize=1)
def method_class() -> Any:
    """Make the linear method (once per process)."""
    from sglang.srt.layers import linear
    from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod

    class MateFp8LinearMethod(Fp8LinearMethod):
        """Block-FP8 weights, in the checkpoint's layout, times activations of 16 bits."""

        def __init__(self, quant_config) -> None:
            super().__init__(quant_config)
            self.activation = resolve_activation(settings().activation, "cpu")
            self.block = tuple(quant_config.weight_block_size)

        def process_weights_after_loading(self, layer) -> None:
            # MLA reads the scale of kv_b_proj itself, so the parameter stays what it is.
            scale = layer.weight_scale_inv
            if scale.dtype != torch.float32 or not scale.is_contiguous():
                raise ValueError(
                    f"weight_scale_inv: expected float32 in rows, got {scale.dtype} "
                    f"with strides {scale.stride()}"
                )
            check_scale(layer.weight, scale, self.block)
            note_layer(layer.weight, self.activation)

        def apply(self, layer, x, bias=None):
            if not isinstance(x, torch.Tensor):
                raise TypeError(
                    f"x: expected a tensor of 16-bit activations, got {type(x).__name__}"
                )
            return block_linear(x, layer.weight, layer.weight_scale_inv, bias, self.activation)

    # SGLang picks its loader by the name of the method's class.
    name = MateFp8LinearMethod.__name__
    if name not in linear.WEIGHT_LOADER_V2_SUPPORTED:
        linear.WEIGHT_LOADER_V2_SUPPORTED.append(name)
    return MateFp8LinearMethod


def refusal(quant_config: Any) -> str | None:
    """Why FP8 linear layers of this config cannot be served, or None."""
    block = quant_config.weight_block_size
    if getattr(quant_config, "use_mxfp8", False) or block is None:
        return "the weights are not quantised in FP8 blocks"
    if tuple(block) not in BLOCKS:
        return f"expected blocks of {' or '.join(map(str, BLOCKS))}, got {tuple(block)}"
    if not quant_config.is_checkpoint_fp8_serialized:
        return "the checkpoint is not FP8"
    return None

"""vLLM's seam for block-FP8 linear layers: one more kernel in the list it chooses from."""

# vLLM fixes the signatures of what it calls.
# ruff: noqa: ARG002, ARG003

from __future__ import annotations

import functools

import torch

from mate_plugin.config import settings
from mate_plugin.kernels import packing
from mate_plugin.layers import vllm_device
from mate_plugin.layers.linear import block_linear, check_scale, note_layer
from mate_plugin.layers.plan import (
    BLOCKS,
    block_of,
    implementation,
    phrase,
    resolve_activation,
)
from mate_plugin.report import Hook

NAME = "vllm.linear"


def install() -> Hook:
    """Append the kernel to the platform's list, or say what stands against it."""
    try:
        from vllm.model_executor.kernels import linear
        from vllm.platforms import current_platform

        table = getattr(linear, "_POSSIBLE_FP8_BLOCK_KERNELS", None)
        if not isinstance(table, dict):
            return Hook(NAME, False, "this vLLM lacks the list of block-FP8 kernels")
        block_of(settings().scale_granularity)
        kernel = kernel_class()
        device = vllm_device.kind()
        impl, reason = implementation("batched_gemm", device, vllm_device.capability())
    except (ValueError, NotImplementedError) as error:
        return Hook(NAME, False, str(error))
    except (ImportError, AttributeError) as error:
        return Hook(NAME, False, f"this vLLM does not fit: {error}")
    known = table.setdefault(current_platform._enum, [])
    form = phrase(resolve_activation(settings().activation, device))
    if device != "cpu":
        # vLLM takes the first kernel that fits, and the settings ask for ours.
        if kernel not in known:
            known.insert(0, kernel)
        return Hook(NAME, True, f"block-FP8 linear before vLLM's own: {form}, {impl}: {reason}")
    if kernel not in known:
        # The last place: here vLLM's own come first.
        known.append(kernel)
    usable = [one.__name__ for one in known if one is not kernel and one.is_supported()[0]]
    if usable:
        return Hook(NAME, True, f"block-FP8 linear after {', '.join(usable)}: {form}, {impl}")
    return Hook(NAME, True, f"block-FP8 linear, vLLM has none here: {form}, {impl}: {reason}")


@functools.lru_cache(maxsize=1)
def kernel_class() -> type:
    """Make the kernel class (once per process)."""
    from vllm import envs
    from vllm.model_executor.kernels.linear.scaled_mm.BlockScaledMMLinearKernel import (
        Fp8BlockScaledMMLinearKernel,
    )
    from vllm.model_executor.utils import replace_parameter

    class MateFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
        """Block-FP8 weights times activations that arrive in 16 bits."""

        apply_input_quant = False

        def __init__(self, config) -> None:
            super().__init__(config)
            self.activation = resolve_activation(settings().activation, vllm_device.kind())
            self.block = tuple(config.weight_quant_key.scale.group_shape)
            self.packed: bool | None = None

        @classmethod
        def is_supported(cls, compute_capability=None):
            if not vllm_device.served("linear"):
                return (
                    False,
                    "requires the platform cpu, or a GPU with cuda.linear or musa.linear",
                )
            if vllm_device.kind() != "cpu" and envs.VLLM_BATCH_INVARIANT:
                return False, "on GPUs the sums of few rows depend on how many they are"
            return True, None

        @classmethod
        def can_implement(cls, config):
            supported, reason = super().can_implement(config)
            if not supported:
                return supported, reason
            block = tuple(config.weight_quant_key.scale.group_shape)
            if block not in BLOCKS:
                return False, f"requires weight blocks of {BLOCKS}, got {block}"
            for name in ("input_dtype", "out_dtype"):
                dtype = getattr(config, name)
                if dtype not in (torch.bfloat16, torch.float16):
                    return False, f"requires {name} bfloat16 or float16, got {dtype}"
            return True, None

        def process_weights_after_loading(self, layer) -> None:
            params = self._get_layer_params(layer)
            scale = params.block_scale
            if not scale.dtype.is_floating_point:
                raise TypeError(
                    f"{params.block_scale_attr}: expected floating point, got {scale.dtype}"
                )
            if scale.dtype != torch.float32 or not scale.is_contiguous():
                replace_parameter(
                    layer, params.block_scale_attr, scale.data.to(torch.float32).contiguous()
                )
                scale = getattr(layer, params.block_scale_attr)
            check_scale(params.weight, scale, self.block)
            weight = params.weight
            self.packed = self.packs(layer, weight)
            if self.packed:
                weight = packing.rearrange(weight, weight)
            note_layer(weight, self.activation)

        def packs(self, layer, weight) -> bool:
            if not settings().pack_weights or self.config.input_dtype != torch.bfloat16:
                return False
            # MLA reads the rows of kv_b_proj itself.
            if getattr(layer, "prefix", "").endswith("kv_b_proj"):
                return False
            return packing.why_not(weight) is None

        def apply_weights(self, layer, x, bias=None, **kwargs):
            params = self._get_layer_params(layer)
            weight = params.weight
            if self.packed is None:
                # vLLM took the weights over from a process that had them ready.
                self.packed = self.packs(layer, weight)
            if self.packed:
                weight = packing.packed_view(weight)
            out = block_linear(x, weight, params.block_scale, bias, self.activation)
            return out.to(self.config.out_dtype)

        def apply_block_scaled_mm(self, A, B, As, Bs):
            return block_linear(A, B, Bs, None, self.activation)

    return MateFp8BlockScaledMMKernel

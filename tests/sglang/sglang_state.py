"""What of SGLang a plugin may change, to compare before and after."""

from __future__ import annotations

from typing import Any


def state() -> dict[str, Any]:
    """Everything of SGLang that a plugin may fill."""
    from sglang.kernels.fused_op import BaseFusedOp
    from sglang.srt.arg_groups import choices
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.layers.attention.dsa import dsa_indexer
    from sglang.srt.layers.attention.dsa import utils as dsa
    from sglang.srt.layers.linear import WEIGHT_LOADER_V2_SUPPORTED
    from sglang.srt.layers.moe.moe_runner.runner import _CUSTOM_RUNNER_CORE_FACTORIES
    from sglang.srt.layers.quantization.fp8 import Fp8Config
    from sglang.srt.plugins.hook_registry import HookRegistry

    resolvers = [name for name in vars(dsa) if name.startswith("resolve_")]
    return {
        "runners": list(choices.MOE_RUNNER_BACKEND_CHOICES),
        "attention choices": list(choices.ATTENTION_BACKEND_CHOICES),
        "attention": sorted(ATTENTION_BACKENDS),
        "cores": sorted(_CUSTOM_RUNNER_CORE_FACTORIES),
        "loaders": list(WEIGHT_LOADER_V2_SUPPORTED),
        "forwards": {key: dict(ops) for key, ops in BaseFusedOp._oot_forward_registry.items()},
        "hooks": sorted(name for name, hooks in HookRegistry._hooks.items() if hooks),
        "method": Fp8Config.get_quant_method,
        "resolvers": [(getattr(dsa, name), getattr(dsa_indexer, name, 0)) for name in resolvers],
    }

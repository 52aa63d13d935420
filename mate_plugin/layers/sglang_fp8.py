"""SGLang's FP8 config with the methods for linear and MoE layers exchanged for ours."""

from __future__ import annotations

import functools
from typing import Any

from mate_plugin import report
from mate_plugin.layers import sglang_linear, sglang_moe


def exchange(method: Any, quant_config: Any) -> Any:
    """Our method in the place of SGLang's ``method`` for a layer, where it is ours to serve.

    Raises ValueError where a layer is ours and cannot be served.
    """
    from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod, Fp8MoEMethod

    if type(method) is Fp8MoEMethod and sglang_moe.is_chosen():
        _refuse("MoE", sglang_linear.refusal(quant_config))
        return sglang_moe.fp8_method_class()(quant_config)
    if type(method) is Fp8MoEMethod and sglang_moe.takes_unnamed():
        if reason := sglang_linear.refusal(quant_config) or sglang_moe.dispatch_refusal():
            sglang_moe.stay(reason)
            return method
        return sglang_moe.fp8_method_class()(quant_config)
    if type(method) is Fp8LinearMethod and report.installed(sglang_linear.NAME):
        _refuse("linear", sglang_linear.refusal(quant_config))
        return sglang_linear.method_class()(quant_config)
    return method


@functools.lru_cache(maxsize=1)
def config_class() -> Any:
    """Make the config that the platform mate_cpu gives for "fp8" (once per process)."""
    from sglang.srt.layers.quantization.fp8 import Fp8Config

    class MateFp8Config(Fp8Config):
        """SGLang's "fp8" with our methods."""

        @classmethod
        def get_min_capability(cls) -> int:
            return 0

        def get_quant_method(self, layer, prefix):
            return exchange(super().get_quant_method(layer, prefix), self)

    return MateFp8Config


def _refuse(what: str, reason: str | None) -> None:
    if reason:
        raise ValueError(f"mate-plugin cannot serve these FP8 {what} layers: {reason}")

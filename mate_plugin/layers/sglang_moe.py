"""SGLang's seam for MoE layers: the runner backend ``mate``, and methods whose layers use it."""

from __future__ import annotations

import functools
import logging
from typing import Any

from mate_plugin import report
from mate_plugin.config import GPUS, settings
from mate_plugin.kernels import select
from mate_plugin.layers import sglang_release
from mate_plugin.layers.configured import plan_for
from mate_plugin.layers.sglang_release import on_mate_cpu
from mate_plugin.layers.weights import shape_name, weight_bits
from mate_plugin.report import Hook

logger = logging.getLogger("sglang.mate_plugin")
NAME, DEEP_GEMM = "sglang.moe", "sglang.moe_deep_gemm"
BACKEND = "mate"
_MOE, _QUANT = "sglang.srt.layers.moe", "sglang.srt.layers.quantization"
_FP8_METHOD = f"{_QUANT}.fp8.Fp8Config.get_quant_method"
_CREATE_16BIT = f"{_QUANT}.unquant.UnquantizedFusedMoEMethod.create_moe_runner"
TARGETS = (
    _FP8_METHOD,
    _CREATE_16BIT,
    f"{_QUANT}.fp8.Fp8MoEMethod.apply",
    f"{_QUANT}.fp8.Fp8MoEMethod.create_moe_runner",
    f"{_QUANT}.fp8.Fp8MoEMethod.get_triton_quant_info",
    f"{_QUANT}.unquant.UnquantizedFusedMoEMethod.get_triton_quant_info",
    f"{_MOE}.moe_runner.base.DispatchMoeRunnerCore.run_from_dispatch",
    f"{_MOE}.moe_runner.runner.MoeRunner",
    f"{_MOE}.moe_runner.runner.register_moe_runner_core",
    f"{_MOE}.utils.get_moe_a2a_backend",
    f"{_MOE}.utils.get_moe_runner_backend",
    f"{_MOE}.utils.resolve_moe_runner_backend",
    "sglang.kernels.fused_op.BaseFusedOp.register_oot_forward",
    "sglang.srt.arg_groups.choices.add_moe_runner_backend_choices",
)


def wanted_by_default() -> bool:
    """Whether the setting ``auto`` means yes: on mate_cpu, and on GPUs with kernels of ours."""
    return (
        on_mate_cpu() or select.choose("ragged_m_gemm", sglang_release.platform()).impl is not None
    )


def install() -> Hook:
    """Register the runner backend and its methods, or say what stands against it."""
    also = "auto or " if _asked() else ""
    hook = _offer(NAME, BACKEND, also)
    if hook.installed:
        _hook_methods()
    return hook


def install_as_deep_gemm() -> Hook:
    """Register our core for the runner backend deep_gemm too, or say what stands against it."""
    return _offer(DEEP_GEMM, "deep_gemm")


def is_chosen() -> bool:
    """Whether MoE layers of this process run on our backend."""
    from sglang.srt.layers.moe.utils import get_moe_runner_backend

    return bool(get_moe_runner_backend().value == BACKEND)


def takes_unnamed() -> bool:
    """Whether FP8 experts are ours though no runner backend is named: on GPUs where the settings
    ask for it."""
    from sglang.srt.layers.moe.utils import get_moe_runner_backend

    return _asked() and bool(get_moe_runner_backend().is_auto())


def _asked() -> bool:
    platform = sglang_release.platform()
    return platform in GPUS and bool(getattr(settings(), platform).moe)


def dispatch_refusal() -> str | None:
    """Why experts that do not name our runner cannot have their tokens as they are moved here."""
    from sglang.srt.layers.moe.utils import get_moe_a2a_backend

    backend = get_moe_a2a_backend()
    return None if backend.is_none() else f"--moe-a2a-backend: expected none, got {backend.value}"


@functools.cache
def stay(reason: str) -> None:
    """Say once why FP8 experts stay with SGLang's own runners."""
    logger.warning("mate-plugin cannot serve these FP8 experts, which stay SGLang's: %s", reason)


@functools.lru_cache(maxsize=1)
def fp8_method_class() -> Any:
    """Make the method of FP8 layers (once per process)."""
    from sglang.srt.layers.quantization.fp8 import Fp8MoEMethod

    class MateFp8MoEMethod(Fp8MoEMethod):
        """FP8 blocks, in the checkpoint's layout, on our runner."""

        ours = True

        def create_moe_runner(self, layer, moe_runner_config) -> None:
            try:
                runner = make_runner(moe_runner_config)
            except ValueError as error:
                if is_chosen():
                    raise
                stay(str(error))
                self.ours = False
                super().create_moe_runner(layer, moe_runner_config)
                return
            self.moe_runner_config = moe_runner_config
            self._owns_moe_runner = True
            self.runner = runner

        def process_weights_after_loading(self, layer) -> None:
            if not self.ours:
                super().process_weights_after_loading(layer)
                return
            self.runner.runner_core.prepare(self.get_triton_quant_info(layer))

        def apply(self, layer, dispatch_output):
            if not self.ours:
                return super().apply(layer, dispatch_output)
            return self.runner.run(dispatch_output, self.get_triton_quant_info(layer))

    return MateFp8MoEMethod


def make_runner(config: Any) -> Any:
    """SGLang's MoeRunner around our core."""
    from sglang.srt.layers.moe.moe_runner.runner import MoeRunner
    from sglang.srt.layers.moe.utils import resolve_moe_runner_backend

    return MoeRunner(resolve_moe_runner_backend(BACKEND), config)


@functools.lru_cache(maxsize=1)
def core_class() -> Any:
    """Make the runner core (once per process)."""
    from sglang.srt.layers.moe.moe_runner.base import DispatchMoeRunnerCore
    from sglang.srt.layers.moe.utils import resolve_moe_runner_backend

    from mate_plugin.layers.sglang_dispatch import check_config, check_quant_info, run

    class MateRunnerCore(DispatchMoeRunnerCore):
        """Rows of 16 bits, or FP8 rows of an expert-parallel dispatcher, through our experts."""

        name = BACKEND

        def __init__(self, config) -> None:
            super().__init__(config)
            check_config(config)
            self.plan: Any = None

        @property
        def runner_backend(self):
            return resolve_moe_runner_backend(self.name)

        def prepare(self, quant_info) -> None:
            """Choose how to compute, once the weights are there."""
            bits = weight_bits(quant_info.w13_scale)
            plan = plan_for(quant_info.w2_weight.device, self.config.swiglu_limit, bits)
            check_quant_info(quant_info, plan.block)
            self.plan = plan
            report.layer_built("moe", shape_name(quant_info.w2_weight), self.plan.describe())

        def run_from_dispatch(self, dispatch_output, quant_info, runner_config, hooks=None):
            if hooks is not None:
                raise NotImplementedError("hooks: the MoE runner mate does not serve LoRA adapters")
            if self.plan is None:
                self.prepare(quant_info)
            return run(self.plan, dispatch_output, quant_info, runner_config)

    return MateRunnerCore


def _offer(name: str, backend: str, also: str = "") -> Hook:
    try:
        plan = plan_for(_device_type())
    except (ValueError, NotImplementedError) as error:
        return Hook(name, False, str(error))
    _register_core(backend)
    return Hook(name, True, f"--moe-runner-backend {also}{backend}: {plan.describe()}")


def _register_core(name: str) -> None:
    from sglang.srt.arg_groups import choices
    from sglang.srt.layers.moe.moe_runner import runner

    if name not in choices.MOE_RUNNER_BACKEND_CHOICES:
        choices.add_moe_runner_backend_choices([name])
    if name not in runner._CUSTOM_RUNNER_CORE_FACTORIES:
        core = type("MateRunnerCore", (core_class(),), {"name": name})
        runner.register_moe_runner_core(name, core)


def _hook_methods() -> None:
    from sglang.kernels.fused_op import BaseFusedOp
    from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(_CREATE_16BIT, _create_16bit, HookType.AROUND)
    if on_mate_cpu():
        # There the platform gives a config of ours for FP8, and SGLang would compute 16 bits in
        # plain torch.
        BaseFusedOp.register_oot_forward(
            UnquantizedFusedMoEMethod, _forward_16bit, sglang_release.MATE_CPU
        )
    else:
        HookRegistry.register(_FP8_METHOD, _fp8_method, HookType.AROUND)


def _create_16bit(original: Any, method: Any, layer: Any, moe_runner_config: Any) -> None:
    if not is_chosen():
        return original(method, layer, moe_runner_config)
    if method.with_bias:
        raise ValueError("with_bias: the MoE runner mate serves experts without biases")
    method.moe_runner_config = moe_runner_config
    method._aiter_runner = None
    method.runner = make_runner(moe_runner_config)
    return None


def _forward_16bit(method: Any, layer: Any, dispatch_output: Any) -> Any:
    if not is_chosen():
        return method.forward_native(layer, dispatch_output)
    return method.runner.run(dispatch_output, method.get_triton_quant_info(layer))


def _fp8_method(original: Any, quant_config: Any, layer: Any, prefix: str) -> Any:
    from mate_plugin.layers.sglang_fp8 import exchange

    return exchange(original(quant_config, layer, prefix), quant_config)


def _device_type() -> str:
    return "cpu" if on_mate_cpu() else sglang_release.platform()

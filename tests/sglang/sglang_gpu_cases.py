"""What test_gpus.py runs: our MoE runner as on a GPU, with CPU tensors, as our kernels are."""

from __future__ import annotations

from layer_oracle import moe
from sglang_layer_cases import WHOLE
from sglang_layers import bare, fp8_config, fused_moe, publish
from sglang_moe_cases import INFOS, KINDS, TOPK, check, routed, run, runner
from sglang_state import state


def load(platform: str, kernels: bool = True) -> None:
    """Load the plugin as on ``platform``; with ``kernels``, as if ours served it."""
    from sglang.srt.plugins import load_plugins

    from mate_plugin.layers import sglang_moe, sglang_release

    sglang_release.platform = lambda: platform
    if kernels:
        sglang_moe._device_type = lambda: "cpu"
    load_plugins()


def defaults_on_cuda() -> None:
    """On NVIDIA nothing is replaced or offered that nobody has asked for."""
    from mate_plugin import report

    before = state()
    load("cuda")
    # As long as there are no kernels for it, which would be taken for a wish.
    assert not any(hook.installed for hook in report.hooks()), report.explain()
    assert state() == before


def without_kernels() -> None:
    """A wish that no kernel can serve is answered with the reason."""
    from mate_plugin import report

    before = state()
    load("cuda", kernels=False)
    hooks = {hook.name: hook for hook in report.hooks()}
    for name in ("sglang.moe", "sglang.moe_deep_gemm", "sglang.deep_gemm"):
        assert not hooks[name].installed
        reason = hooks[name].reason
        assert "libmate_cuda.so is missing" in reason or "sees no GPU" in reason
    assert hooks["sglang.sparse"].reason == "expected the platform mate_cpu, found cuda"
    assert state() == before


def defaults_on_musa() -> None:
    """On MUSA the DSA indexer is given its forward and its rotation, and nothing else is touched:
    the slots for DeepGEMM are wanted, and there are no kernels yet."""
    from mate_plugin import report
    from mate_plugin.indexer.sglang_indexer import ROTATE

    before = state()
    load("musa", kernels=False)
    hooks = {hook.name: hook for hook in report.hooks()}
    assert hooks["sglang.indexer"].installed
    assert "libmate_musa.so is missing" in hooks["sglang.deep_gemm"].reason
    assert state() == before | {"hooks": sorted([*before["hooks"], ROTATE])}


def by_name() -> None:
    """``--moe-runner-backend mate`` has our methods, and any other name SGLang's."""
    from sglang.srt.layers.linear import ReplicatedLinear
    from sglang.srt.layers.moe.topk import StandardTopKOutput
    from sglang.srt.layers.quantization import get_quantization_config
    from sglang.srt.layers.quantization.fp8 import Fp8Config, Fp8LinearMethod, Fp8MoEMethod

    load("cuda")
    before = state()
    assert before["runners"].count("mate") == 1
    assert before["cores"] == ["mate"]
    publish()
    config = fp8_config()
    assert type(config) is Fp8Config
    assert get_quantization_config("fp8").__name__ != "Fp8Config"  # the platform is mate_cpu
    hidden, probs, ids = routed()
    for weights, quant in ((WHOLE, config), (KINDS["bf16"], None)):
        layer = fused_moe(weights, quant, TOPK)
        assert layer.runner_backend.value == "mate"
        if quant:
            assert type(layer.quant_method).__name__ == "MateFp8MoEMethod"
            found = layer(hidden, StandardTopKOutput(probs, ids, None))
        else:
            # The platform of this process would take the forward of mate_cpu.
            given = layer.dispatcher.dispatch(hidden, StandardTopKOutput(probs, ids, None))
            found = layer.quant_method.forward_cuda(layer, given).hidden_states
        check(found, moe(weights, hidden, probs, ids))
    # Linear layers off mate_cpu stay SGLang's.
    assert type(config.get_quant_method(bare(ReplicatedLinear), "x")) is Fp8LinearMethod
    for other in ("triton", "auto"):
        publish(other)
        layer = fused_moe(KINDS["bf16"], None, TOPK)
        assert layer.runner_backend.value == "triton"
        method = config.get_quant_method(bare(type(layer)), "experts")
        assert type(method) is Fp8MoEMethod


def unnamed() -> None:
    """Asked for by the setting, our methods have the FP8 experts that name no runner backend."""
    from sglang.srt.layers.moe.topk import StandardTopKOutput
    from sglang.srt.layers.moe.utils import MoeA2ABackend
    from sglang.srt.layers.quantization.fp8 import Fp8MoEMethod
    from sglang.srt.runtime_context import get_flags

    from mate_plugin import report

    load("cuda")
    (hook,) = (hook for hook in report.hooks() if hook.name == "sglang.moe")
    assert hook.reason.startswith("--moe-runner-backend auto or mate: ")
    publish("auto")
    config = fp8_config()
    hidden, probs, ids = routed()
    layer = fused_moe(WHOLE, config, TOPK)
    assert layer.runner_backend.value == "mate"
    assert type(layer.quant_method).__name__ == "MateFp8MoEMethod"
    check(layer(hidden, StandardTopKOutput(probs, ids, None)), moe(WHOLE, hidden, probs, ids))
    # What ours cannot serve, and what is not FP8, stays SGLang's.
    other = fused_moe(WHOLE, config, TOPK, activation="gelu")
    assert not other.quant_method.ours
    assert other.runner_backend.value == "triton"
    assert fused_moe(KINDS["bf16"], None, TOPK).runner_backend.value != "mate"
    bare_layer = bare(type(layer))
    whole_tensors = fp8_config(weight_block_size=None)
    assert type(whole_tensors.get_quant_method(bare_layer, "experts")) is Fp8MoEMethod
    get_flags().moe.a2a_backend = MoeA2ABackend.DEEPEP
    assert type(config.get_quant_method(bare_layer, "experts")) is Fp8MoEMethod


def as_deep_gemm() -> None:
    """Under the name deep_gemm our core takes what SGLang prepares for DeepGEMM."""
    from sglang.srt.layers.moe.topk import StandardTopKOutput
    from sglang.srt.layers.quantization.fp8 import Fp8MoEMethod

    from mate_plugin import report

    load("cuda")
    assert report.installed("sglang.moe_deep_gemm")
    assert not report.installed("sglang.moe")
    now = state()
    assert now["cores"] == ["deep_gemm"]
    assert "mate" not in now["runners"]
    hidden, probs, ids = routed()
    for weights in KINDS.values():
        made = runner("deep_gemm")
        assert type(made.runner_core).__name__ == "MateRunnerCore"
        assert made.runner_core.runner_backend.is_deep_gemm()
        found = run(made, INFOS["deep_gemm"](weights), hidden, probs, ids)
        check(found, moe(weights, hidden, probs, ids))
    publish("deep_gemm")
    layer = fused_moe(WHOLE, fp8_config(), TOPK)
    assert type(layer.quant_method) is Fp8MoEMethod
    core, infos = layer.runner.runner_core, []
    prepare = core.prepare
    core.prepare = lambda info: infos.append(type(info).__name__) or prepare(info)
    found = layer(hidden, StandardTopKOutput(probs, ids, None))
    check(found, moe(WHOLE, hidden, probs, ids))
    assert infos == ["DeepGemmMoeQuantInfo"]

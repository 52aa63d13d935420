"""What test_vllm_cuda.py runs inside a process with vLLM: the hooks on a pretended NVIDIA GPU."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch


def pretend(kernels: bool = True) -> None:
    """vLLM's platform becomes a GPU of compute capability 9.0, with our library or without it.

    What would start CUDA up fails: a process that registers plugins may still be forked.
    """
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.platforms import current_platform
    from vllm.platforms.interface import DeviceCapability, PlatformEnum
    from vllm_cases import bare_config

    from mate_plugin.kernels import library

    # Both ask the platform for what a CPU build of vLLM has no GPU code for.
    get_quantization_config("fp8")
    bare_config()
    platform: Any = type(current_platform)
    platform._enum, platform.device_type = PlatformEnum.CUDA, "cuda"
    platform.get_device_capability = classmethod(lambda *_, **__: DeviceCapability(9, 0))
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda *_, **__: pytest.fail("CUDA was started up")
    absent = None if kernels else "libmate_cuda.so is missing"
    missing = library.missing
    library.missing = lambda kind: absent if kind == "cuda" else missing(kind)
    library._loaded["cuda"] = SimpleNamespace(implements_function=lambda _: True)


def hooks() -> dict[str, Any]:
    """The hooks of this process by name, once the plugin is loaded."""
    from vllm.plugins import load_general_plugins

    from mate_plugin import report

    load_general_plugins()
    return {hook.name: hook for hook in report.hooks()}


def block_kernels() -> list[str]:
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

    return [one.__name__ for one in linear._POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CUDA]]


def untouched() -> None:
    """Nothing of vLLM's is replaced."""
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.quantization import get_quantization_config

    assert get_quantization_config("fp8").__name__ == "Fp8Config"
    assert not [name for name in block_kernels() if name.startswith("Mate")]
    assert not op_registry_oot


def default() -> None:
    """Nobody asked: nothing is installed, and nothing is amiss."""
    pretend()
    found = hooks()
    assert not any(hook.installed or hook.wanted for hook in found.values()), found
    assert found["vllm.moe"].reason == "left to vLLM on cuda (cuda.moe: false)"
    assert found["vllm.linear"].reason == "left to vLLM on cuda (cuda.linear: false)"
    assert found["vllm.sparse"].reason == "left to vLLM on cuda"
    untouched()


def asked_for_experts() -> None:
    """The config is ours, and nothing else."""
    from vllm.model_executor.layers.quantization import get_quantization_config

    pretend()
    found = hooks()
    assert found["vllm.moe"].installed
    expected = "FP8 block MoE: 8-bit x 8-bit, psum_expert/128, sm90a: compute capability 9.0"
    assert found["vllm.moe"].reason == expected
    assert not found["vllm.linear"].installed
    assert get_quantization_config("fp8").__name__ == "MateFp8Config"
    assert not [name for name in block_kernels() if name.startswith("Mate")]


def asked_for_linear() -> None:
    """Our kernel stands before vLLM's own."""
    from vllm_cases import linear_config

    from mate_plugin.layers.vllm_linear import kernel_class

    pretend()
    found = hooks()
    expected = "block-FP8 linear before vLLM's own: 8-bit x 8-bit, sm90a: compute capability 9.0"
    assert found["vllm.linear"].reason == expected
    assert not found["vllm.moe"].installed
    assert block_kernels()[0] == "MateFp8BlockScaledMMKernel"
    assert kernel_class().is_supported(90) == (True, None)
    assert kernel_class().can_implement(linear_config()) == (True, None)
    os.environ["VLLM_BATCH_INVARIANT"] = "1"
    supported, reason = kernel_class().is_supported(90)
    assert not supported
    assert "sums of few rows" in reason


def without_kernels() -> None:
    """A wish that no kernel can serve is answered with the reason."""
    pretend(kernels=False)
    found = hooks()
    for name in ("vllm.moe", "vllm.linear"):
        assert found[name].wanted
        assert not found[name].installed
        assert "libmate_cuda.so is missing" in found[name].reason
    untouched()


def layers() -> None:
    """Layers that ours cannot serve stay where vLLM puts them."""
    from vllm_cases import quant_method

    from mate_plugin.layers.vllm_moe import experts_classes

    pretend()
    hooks()
    ours = experts_classes()[0]
    taken = quant_method(256, 2)
    assert taken.experts_reason is None
    assert taken.experts_cls is ours
    assert quant_method(256, 1, ep_size=2).experts_cls is ours
    for kept, word in (
        (quant_method(256, 1, ep_size=2, dp_size=2), "never ran on a GPU"),
        (quant_method(256, 2, all2all_backend="passthrough"), "never ran on a GPU"),
        (quant_method(256, 1, moe_backend="marlin"), "another MoE backend is asked for"),
    ):
        assert word in kept.experts_reason, kept.experts_reason
        assert kept.experts_cls is not None
        assert kept.experts_cls is not ours

"""SGLang's platform ``mate_cpu``: any x86 CPU, with our layers and without ``sgl_kernel``.

Chosen by ``SGLANG_PLATFORM=mate_cpu`` only.
"""

# SGLang fixes the signatures of what it calls.
# ruff: noqa: ARG002

from __future__ import annotations

import functools
from typing import Any

from mate_plugin import report
from mate_plugin.indexer import sglang_sparse
from mate_plugin.indexer.sglang_mla import BACKEND as MLA_BACKEND
from mate_plugin.layers import sglang_attention, sglang_moe, sglang_pool
from mate_plugin.layers.sglang_release import MATE_CPU

PAGE = 64
# What SGLang fills in for a CPU: kernels for AMX out of sgl_kernel, which this platform is without.
AMX_BACKEND = "intel_amx"


@functools.cache
def platform_class() -> type:
    """Make the platform class (once per process)."""
    from sglang.srt.platforms.cpu import CpuDeviceMixin
    from sglang.srt.platforms.device_mixin import PlatformEnum
    from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

    class MateCpuPlatform(CpuDeviceMixin, SRTPlatform):
        """SGLang on a CPU in plain torch, and on our kernels where it has layers for them."""

        _enum = PlatformEnum.OOT
        device_name = MATE_CPU
        device_type = "cpu"
        supported_quantization = ("fp8",)
        capabilities = PlatformCapabilities()

        def get_default_attention_backend(self) -> str:
            ours = report.installed(sglang_attention.NAME)
            return sglang_attention.BACKEND if ours else "torch_native"

        def get_device(self, device_id=0) -> str:
            # SGLang takes its default for --device from here, and wants the text of it.
            return "cpu"

        def get_dispatch_key_name(self) -> str:
            return MATE_CPU

        def get_kv_pool_cls(self, *, kind):
            if kind == "mha" and sglang_pool.chosen(sglang_attention.BACKEND):
                return sglang_pool.pool_class()
            return super().get_kv_pool_cls(kind=kind)

        def get_compile_backend(self, mode=None) -> str:
            return "eager"

        def get_quantization_config(self, quantization):
            if quantization != "fp8":
                return None
            from mate_plugin.layers.sglang_fp8 import config_class

            return config_class()

        def apply_server_args_defaults(self, server_args) -> None:
            from sglang.srt.arg_groups.model_override_base import model_config_of
            from sglang.srt.configs.model_config import AttentionArch, is_deepseek_dsa

            # The scheduler would otherwise spin on a core that the kernels could use.
            server_args.sleep_on_idle = True
            if server_args.moe_runner_backend == "auto" and report.installed(sglang_moe.NAME):
                server_args.moe_runner_backend = sglang_moe.BACKEND
            config = model_config_of(server_args)
            chosen = server_args.attention_backend
            if chosen in (None, AMX_BACKEND):
                mla = config.attention_arch == AttentionArch.MLA
                ours = mla and report.installed(sglang_sparse.NAME)
                chosen = MLA_BACKEND if ours else self.get_default_attention_backend()
                server_args.attention_backend = chosen
            if chosen in (MLA_BACKEND, sglang_attention.BACKEND):
                server_args.page_size = server_args.page_size or PAGE
            if chosen != MLA_BACKEND and is_deepseek_dsa(config.hf_config):
                raise ValueError(
                    f"--attention-backend: expected {MLA_BACKEND}, which alone serves sparse"
                    f" attention on this platform, got {chosen}"
                )

    MateCpuPlatform.__module__ = __name__
    MateCpuPlatform.__qualname__ = "MateCpuPlatform"
    return MateCpuPlatform


def __getattr__(name: str) -> Any:
    # SGLang finds the class by this module's name; it can only be made once SGLang is imported.
    if name == "MateCpuPlatform":
        return platform_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

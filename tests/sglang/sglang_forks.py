"""Forks of one process that has imported SGLang on the platform mate_cpu."""

from __future__ import annotations

from pathlib import Path

from forked import Done, Forks

HERE = Path(__file__).resolve().parent
# Before the plugin is loaded, so that what is bound by then is replaced too.
IMPORTS = f"""
import sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
import sglang.srt.server_args
import sglang.srt.models.deepseek_v2
import sglang.srt.layers.attention.attention_registry
import sglang.srt.layers.attention.dsa.dsa_indexer
import sglang.srt.layers.attention.torch_native_backend
import sglang.srt.layers.moe.moe_runner.runner
import sglang.srt.layers.quantization.fp8
"""


class SglangForks(Forks):
    """Forks of a process with SGLang imported on the platform mate_cpu."""

    def __init__(self) -> None:
        super().__init__(IMPORTS, SGLANG_PLATFORM="mate_cpu")

    def case(self, name: str, *, load: bool = True, **env: str) -> Done:
        """Run ``module.function`` of a file of cases, with the plugin loaded unless told."""
        module, _, function = name.partition(".")
        lines = ["from sglang.srt.plugins import load_plugins; load_plugins()"] if load else []
        return self.run("\n".join([*lines, f"import {module}; {module}.{function}()"]), **env)

"""Tokens per second of a Qwen3-MoE-style model in SGLang, through the plugin and by its own path.

    .venv-sglang/bin/python benchmarks/served_sglang.py

Random weights; FP8 and bf16 through the plugin, bf16 by stock SGLang in plain torch. Stock SGLang
wants ``sgl_kernel``, of which there is no CPU build: the stand-in of the tests takes its place.
"""

from __future__ import annotations

import os
from pathlib import Path

import typer
from serving import Clients, Repeats, Tokens, Way, compare

from mate_plugin.demo.engines import SGLANG

STOCK = Path(__file__).parent.parent / "tests" / "sglang" / "stock"


def main(clients: Clients = 8, tokens: Tokens = 64, repeats: Repeats = 3) -> None:
    """Print a table of the three servers."""
    own = {
        "SGLANG_PLATFORM": "",
        "SGLANG_USE_CPU_ENGINE": "1",
        "SGLANG_PLUGINS": "none",
        "PYTHONPATH": os.pathsep.join((str(STOCK), *_paths())),
    }
    ways = (
        Way("mate-plugin, FP8", "fp8", ours=True),
        Way("mate-plugin, bf16", "bf16", ours=True),
        Way("SGLang alone, bf16", "bf16", False, own, ("--attention-backend", "torch_native")),
    )
    limits = ("--max-running-requests", str(clients), "--max-total-tokens", "16384")
    compare(SGLANG, ways, clients, tokens, repeats, options=limits)


def _paths() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


if __name__ == "__main__":
    typer.run(main)

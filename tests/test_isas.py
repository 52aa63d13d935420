"""The oracle tests of every kernel again, for each instruction set that is not the default."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mate_plugin.kernels import library

HERE = Path(__file__).parent
FILES = (
    "gemm_ragged_m", "gemm_masked", "gemm_ragged_k", "gemm_dense", "gemm_deep_gemm",
    "indexer", "index_topk", "topk", "indexer_cache", "sparse_mla", "quant", "moe_pieces",
    "fused_moe", "layers_experts", "layers_batched", "layers_forms", "layers_linear",
    "layers_attention",
)  # fmt: skip
OTHERS = [isa for isa in library.available_isas() if isa != library.isa()]


@pytest.mark.parametrize("isa", OTHERS)
def test_oracles(isa: str) -> None:
    paths = [str(HERE / f"test_{name}.py") for name in FILES]
    env = {**os.environ, "MATE_PLUGIN_ISA": isa, "MATE_TEST_EXAMPLES": "20"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-k", "not compile and not process_grows", *paths]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]

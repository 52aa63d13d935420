"""The oracle tests of the GEMMs again, for each instruction set that is not the default."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mate_plugin.kernels import library

HERE = Path(__file__).parent
FILES = ["ragged_m", "masked", "ragged_k", "dense", "deep_gemm"]
OTHERS = [isa for isa in library.available_isas() if isa != library.isa()]


@pytest.mark.parametrize("isa", OTHERS)
def test_oracles(isa: str) -> None:
    paths = [str(HERE / f"test_gemm_{name}.py") for name in FILES]
    env = {**os.environ, "MATE_PLUGIN_ISA": isa, "MATE_TEST_EXAMPLES": "60"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *paths]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]

"""The core answers under each release of its binding that engines pin, and under the newest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import torch, tvm_ffi
from mate_plugin.kernels import gemm, library
a = torch.randn(5, 300, dtype=torch.bfloat16)
b = torch.randn(130, 300).to(torch.float8_e4m3fn)
scale = torch.rand(2, 3) + 0.5
out = gemm.gemm_w8a16_nt_groupwise(a, b, scale)
full = scale.double().repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)[:, :300]
torch.testing.assert_close(out.double(), a.double() @ (b.double() * full).t(), rtol=2e-2, atol=2e-2)
print(tvm_ffi.__version__, library.counters()[0]["calls"])
"""


@pytest.mark.parametrize("version", ["0.1.9", "0.1.11", ">=0.1.15,<0.2"])
def test_core_runs_with(version: str, tmp_path: Path) -> None:
    requirement = f"apache-tvm-ffi{version if version[0] == '>' else '==' + version}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    fetched = subprocess.run(
        [*pip, str(tmp_path), requirement], capture_output=True, text=True, check=False
    )
    if fetched.returncode != 0 and not os.environ.get("CI"):
        pytest.skip(f"no package index gives {requirement}")
    assert fetched.returncode == 0, fetched.stderr
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    used, calls = ran.stdout.split()
    assert used.startswith(version) or version[0] == ">"
    assert calls == "1"

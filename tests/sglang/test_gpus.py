"""Our MoE runner off the platform mate_cpu: by its own name, and under DeepGEMM's."""

from __future__ import annotations

import pytest

WANTED = {"MATE_PLUGIN_SGLANG_MOE": "1"}
UNSERVED = {f"MATE_PLUGIN_SGLANG_{seam}": "1" for seam in ("MOE", "DEEP_GEMM", "MOE_DEEP_GEMM")}
CASES = {
    "defaults_on_cuda": {},
    "defaults_on_musa": {},
    "without_kernels": UNSERVED | {"MATE_PLUGIN_SGLANG_SPARSE": "1"},
    "by_name": WANTED,
    "unnamed": WANTED | {"MATE_PLUGIN_CUDA_MOE": "1"},
    "as_deep_gemm": {"MATE_PLUGIN_SGLANG_MOE_DEEP_GEMM": "1"},
}


@pytest.mark.parametrize("case", CASES)
def test_case(forks, case):
    done = forks.case(f"sglang_gpu_cases.{case}", load=False, **CASES[case])
    assert done.returncode == 0, done.output

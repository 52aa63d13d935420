"""SGLang's own MoE and linear layers with our methods, from loading to output."""

from __future__ import annotations

import pytest

CASES = {
    "fused_moe_layers": {},
    "skipped_experts": {},
    "other_runner": {},
    "biased_experts": {},
    "linear": {},
    "skipped_linear": {},
    "refused_linear": {},
    "linear_off": {"MATE_PLUGIN_SGLANG_LINEAR": "0"},
}


@pytest.mark.parametrize("case", CASES)
def test_case(forks, case):
    done = forks.case(f"sglang_layer_cases.{case}", **CASES[case])
    assert done.returncode == 0, done.output

"""SGLang's MoE runner with our core, from its dispatch formats to its combine inputs."""

from __future__ import annotations

import pytest

CASES = (
    "whole_layer",
    "options",
    "scaling_factor",
    "bypassed_topk",
    "fused_shared_experts",
    "expert_parallel",
    "low_latency",
    "rounds_between",
    "overlap",
    "refusals",
    "refused_formats",
    "report",
)


@pytest.mark.parametrize("case", CASES)
def test_case(forks, case):
    done = forks.case(f"sglang_moe_cases.{case}")
    assert done.returncode == 0, done.output

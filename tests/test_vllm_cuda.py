"""vLLM's hooks on NVIDIA GPUs, told by a platform that only pretends: opt-in, and why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import Forks, needs_vllm

pytestmark = needs_vllm
HERE = Path(__file__).resolve().parent
STRICT = {"MATE_PLUGIN_STRICT": "1"}
MOE = {"MATE_PLUGIN_CUDA_MOE": "1"}
LINEAR = {"MATE_PLUGIN_CUDA_LINEAR": "1"}


@pytest.mark.parametrize(
    ("case", "env"),
    [
        ("default", STRICT),
        ("default", STRICT | {"MATE_PLUGIN_CONFIG": "deepseek_v32"}),
        ("asked_for_experts", STRICT | MOE),
        ("asked_for_linear", STRICT | LINEAR),
        ("without_kernels", MOE | LINEAR),
        ("layers", MOE),
    ],
)
def test_case(forks: Forks, case: str, env: dict[str, str]) -> None:
    done = forks.run_case("vllm_cuda_cases", case, HERE, **env)
    assert done.returncode == 0, done.output
    assert len(done.said()) >= 1

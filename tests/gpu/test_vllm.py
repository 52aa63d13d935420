"""vLLM's layers and their way to our kernels on a GPU, in a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import Forks, needs_vllm
from gpu_contract import require_gpu

require_gpu()
pytestmark = needs_vllm
TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("case", "asked"),
    [
        ("default", ()),
        ("experts", ("MOE",)),
        ("expert_map", ("MOE",)),
        ("graph_and_shared_experts", ("MOE",)),
        ("compiled", ("MOE",)),
        ("linear", ("LINEAR",)),
    ],
)
def test_case(forks: Forks, case: str, asked: tuple[str, ...]) -> None:
    # A fork each, which starts CUDA for itself.
    env = {f"MATE_PLUGIN_CUDA_{name}": "1" for name in asked}
    done = forks.run_case("vllm_device_cases", case, TESTS, MATE_TEST_DEVICE="cuda", **env)
    assert done.returncode == 0, done.output

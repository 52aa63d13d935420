"""vLLM's hooks on NVIDIA GPUs, told by a platform that only pretends: opt-in, and why not."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import Forks

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)
HERE = Path(__file__).resolve().parent
STRICT = {"MATE_PLUGIN_STRICT": "1"}
MOE = {"MATE_PLUGIN_CUDA_MOE": "1"}
LINEAR = {"MATE_PLUGIN_CUDA_LINEAR": "1"}


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    forks = Forks()
    yield forks
    forks.stop()


def run_case(forks: Forks, case: str, env: dict[str, str]):
    code = f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
    return forks.run(code + f"import vllm_cuda_cases; vllm_cuda_cases.{case}()", **env)


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
    done = run_case(forks, case, env)
    assert done.returncode == 0, done.output
    assert len(done.said()) >= 1

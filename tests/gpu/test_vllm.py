"""vLLM's layers and their way to our kernels on a GPU, in a process of their own."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import Forks
from gpu_contract import require_gpu

require_gpu()
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    # Each case is a fork, which starts CUDA for itself.
    forks = Forks()
    yield forks
    forks.stop()


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
    paths = [str(HERE), str(HERE.parent)]
    code = f"import sys; sys.path[:0] = {paths!r}; import vllm_gpu_cases; vllm_gpu_cases.{case}()"
    done = forks.run(code, **{f"MATE_PLUGIN_CUDA_{name}": "1" for name in asked})
    assert done.returncode == 0, done.output

"""vLLM's interfaces for sparse attention, called as vLLM calls them."""

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
CASES = (
    "slots",
    "seam_on_gpus",
    "metadata",
    "indexer",
    "attention",
    "platform",
    "queries",
)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    forks = Forks()
    yield forks
    forks.stop()


@pytest.mark.parametrize("case", CASES)
def test_case(forks, case):
    path = f"import sys; sys.path.insert(0, {str(HERE)!r}); import vllm_sparse_cases as cases\n"
    done = forks.run(f"{path}cases.{case}()")
    assert done.returncode == 0, done.output

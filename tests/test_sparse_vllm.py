"""vLLM's interfaces for sparse attention, called as vLLM calls them."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import needs_vllm

pytestmark = needs_vllm
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


@pytest.mark.parametrize("case", CASES)
def test_case(forks, case):
    done = forks.run_case("vllm_sparse_cases", case, HERE)
    assert done.returncode == 0, done.output

"""SGLang's interfaces for attention and its indexer, called as SGLang calls them."""

from __future__ import annotations

import pytest

CASES = (
    "resolvers",
    "scores",
    "paged_topk",
    "indexer",
    "rotation",
    "keys_without_heads",
    "indexer_refusals",
    "attention",
    "backend_refusals",
    "absorbed",
)


@pytest.mark.parametrize("case", CASES)
def test_case(forks, case):
    done = forks.case(f"sglang_sparse_cases.{case}")
    assert done.returncode == 0, done.output

"""The attention backend mate_mha and its cache, called as SGLang calls them."""

from __future__ import annotations

import pytest

CASES = (
    "plain",
    "read_again",
    "in_torch",
    "other_caches",
    "refusals",
    "cache_views",
    "cache_layouts",
    "pool_choice",
)


@pytest.mark.parametrize("case", CASES)
def test_case(forks, case):
    done = forks.case(f"sglang_attention_cases.{case}")
    assert done.returncode == 0, done.output

"""vLLM's own interfaces around the layers, called as vLLM calls them."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import Forks, needs_vllm

pytestmark = needs_vllm
HERE = Path(__file__).resolve().parent


def run_case(forks: Forks, case: str, env: dict[str, str]) -> None:
    done = forks.run_case("vllm_cases", case, HERE, **env)
    assert done.returncode == 0, done.output


@pytest.mark.parametrize("env", [{}, {"MATE_PLUGIN_GEMM_MODE": "masked"}], ids=["auto", "masked"])
@pytest.mark.parametrize("case", ["standard", "batched", "reasons", "linear"])
def test_case(forks, case, env):
    run_case(forks, case, env)


@pytest.mark.parametrize("wanted", ["1", "0"])
@pytest.mark.parametrize("case", ["packed", "packed_linear"])
def test_weights_are_packed_where_the_setting_says_so(forks, case, wanted):
    run_case(forks, case, {"MATE_PLUGIN_PACK_WEIGHTS": wanted})


def test_shards_of_experts_are_made_of_whole_blocks(forks):
    # vLLM may have experts of its own on this machine, which would take what ours refuse.
    run_case(forks, "shards", {"MATE_PLUGIN_STRICT": "1"})

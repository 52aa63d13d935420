"""SGLang's DSA indexer on a simulated Moore Threads device; nothing here ran on a card."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import musa_device
import musa_native
import pytest
from forked import Forks

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sglang") is None, reason="SGLang is not installed"
)
HERE = Path(__file__).resolve().parent
FOLDERS = [str(musa_device.PACKAGES), str(HERE), str(HERE.parent)]
IMPORTS = f"""
import sys
sys.path[:0] = {FOLDERS!r}
import torchada
import sglang.srt.layers.attention.dsa.dsa_indexer
import sglang.srt.layers.attention.dsa_backend
import sglang.srt.server_args
"""
SELECT_IN_TORCH = {"SGLANG_DSA_FUSE_TOPK": "0"}
WITHOUT_JIT = {"SGLANG_ENABLE_JIT_DEEPGEMM": "0"}
CASES = (
    "without_the_seam",
    "prompts_and_tokens",
    "keys_are_rotated",
    "one_schedule_per_step",
    "more_requests_than_processors",
    "prompts_in_parts",
    "drafts",
    "keys_only",
    "idle",
    "slots_for_attention",
    "our_scores",
    "the_vendors_scores",
    "a_forward_of_its_own",
    "a_release_without_a_target",
    "other_platforms",
)


@pytest.fixture(scope="module")
def forks(request: pytest.FixtureRequest) -> Iterator[Forks]:
    device = musa_device.build(request.config.cache.mkdir("fake_musa"))
    env = musa_device.environment(device) | SELECT_IN_TORCH | WITHOUT_JIT
    forks = Forks(IMPORTS, **env)
    yield forks
    forks.stop()


def test_our_experts(forks: Forks, request: pytest.FixtureRequest) -> None:
    built = musa_native.build_on_host(Path(request.config.cache.mkdir("musa")))
    code = "import musa_cases; musa_cases.our_experts()"
    done = forks.run(code, FAKE_MUSA_LIBRARY=str(built))
    assert done.returncode == 0, done.output


@pytest.mark.parametrize("case", CASES)
def test_case(forks, case):
    done = forks.run(f"import musa_cases; musa_cases.{case}()")
    assert done.returncode == 0, done.output

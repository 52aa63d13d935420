"""vLLM's own layers and wrappers on a simulated Moore Threads GPU; nothing here ran on a card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import musa_device
import musa_native
import pytest
from forked import VLLM, Forks, needs_vllm

pytestmark = needs_vllm
TESTS = Path(__file__).resolve().parent
IMPORTS = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import torch_musa\n{VLLM}"
ASKED = {"MATE_PLUGIN_MUSA_MOE": "1", "MATE_PLUGIN_MUSA_LINEAR": "1"}


@pytest.fixture(scope="module")
def forks(request: pytest.FixtureRequest) -> Iterator[Forks]:
    """Forks of a process in which vLLM has found the device's platform by its entry point."""
    folder = Path(request.config.cache.mkdir("musa"))
    device, library = musa_device.build(folder), musa_native.build_on_host(folder)
    env = musa_device.environment(device, library) | {"MATE_TEST_DEVICE": "musa"}
    del env["TORCH_COMPILE_DISABLE"]
    forks = Forks(IMPORTS, PYTHONPATH=str(musa_device.PACKAGES), **env)
    yield forks
    forks.stop()


@pytest.mark.parametrize(
    ("case", "env"),
    [
        ("scores", {"MATE_PLUGIN_STRICT": "1"}),
        ("without_kernels", ASKED),
        ("experts", ASKED),
        ("expert_map", ASKED),
        ("compiled", ASKED),
        ("linear", ASKED),
    ],
)
def test_case(forks: Forks, case: str, env: dict[str, str]) -> None:
    done = forks.run_case("vllm_musa_cases", case, TESTS, **env)
    assert done.returncode == 0, done.output

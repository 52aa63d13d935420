"""TileLang's place among the kernels for a simulated Moore Threads device.

Nothing here ran on a card: the package is a stand-in that computes in plain torch.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import musa_device
import musa_vendor
import pytest
from forked import Forks

SOURCE = musa_vendor.HERE / "musa_tilelang.py"
# Those that need an environment of their own.
ENV = {
    "portable": {"MATE_PLUGIN_IMPL": "portable"},
    "vendor_alone": {"MATE_PLUGIN_IMPL": "vendor"},
}
BESIDE_THE_VENDOR = {"after_the_vendor": "", "instead_of_the_vendor": "tilelang"}
CASES = [
    node.name
    for node in ast.parse(SOURCE.read_text()).body
    if isinstance(node, ast.FunctionDef)
    and not node.args.args
    and node.name not in ("impls", "log_lines", "reasons", *BESIDE_THE_VENDOR)
]


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> Path:
    return musa_device.build(request.config.cache.mkdir("fake_musa"))


@pytest.fixture(scope="module")
def alone(device: Path) -> Iterator[Forks]:
    """A process where TileLang is installed and the vendor's package is not."""
    forks = musa_vendor.start(device, musa_device.TILELANG)
    yield forks
    forks.stop()


def run(forks: Forks, case: str, **env: str) -> None:
    done = forks.run(f"import musa_tilelang; musa_tilelang.{case}()", **env)
    assert done.returncode == 0, done.output


@pytest.mark.parametrize("case", CASES)
def test_case(alone: Forks, case: str) -> None:
    run(alone, case, **ENV.get(case, {}))


def test_it_can_be_insisted_on(alone: Forks) -> None:
    for case in ("serves", "refused", "broken", "graphs"):
        run(alone, case, MATE_PLUGIN_IMPL="tilelang")


@pytest.mark.parametrize("case", BESIDE_THE_VENDOR)
def test_beside_the_vendor(device: Path, tmp_path: Path, case: str) -> None:
    forks = musa_vendor.start(device, musa_vendor.install(tmp_path, "0.2.2"), musa_device.TILELANG)
    try:
        run(forks, case, MATE_PLUGIN_IMPL=BESIDE_THE_VENDOR[case])
    finally:
        forks.stop()

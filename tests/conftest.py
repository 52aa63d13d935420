"""Fixtures of several files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forked import Forks

from mate_plugin.kernels.checks import set_index_checks


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes run tests, each file is one's, which makes its fixtures once.

    Of a file that serves models one process has all tests of a family, which has its own servers.
    Tests of the simulated device go to whoever is free.
    """
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        if item.path.parent.name == "musa":
            continue
        group = item.path.name
        if item.get_closest_marker("served") and (call := getattr(item, "callspec", None)):
            group += f" {call.params.get('family', '')}"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def checked() -> Iterator[None]:
    """Contents of index tensors are checked."""
    before = set_index_checks(True)
    yield
    set_index_checks(before)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Forks of a process that has imported vLLM."""
    forks = Forks()
    yield forks
    forks.stop()

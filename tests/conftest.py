"""Fixtures of several files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forked import Forks

from mate_plugin.kernels.checks import set_index_checks


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

"""A process with SGLang imported, shared by the tests of its seams; a mark for those that serve."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sglang_forks import SglangForks

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "serving"), str(TESTS / "vllm"), str(TESTS)]


def pytest_configure(config):
    config.addinivalue_line("markers", "served: starts SGLang servers (minutes)")


@pytest.fixture(scope="session")
def forks() -> Iterator[SglangForks]:
    try:
        importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("SGLang is not installed")
    forks = SglangForks()
    yield forks
    forks.stop()

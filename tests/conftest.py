"""Fixtures of several files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Forks

from mate_plugin.kernels.checks import set_index_checks

# What has servers of its own: a family, and of the sparse one what selects all tokens.
SERVED = re.compile(r"qwen3-moe|deepseek-v3\.2|deepseek-v3|\ball\b|_all_")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadscope`` each file is one process's, which makes its fixtures once.

    Of a file that serves models one process has all tests of the same servers.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, test = nodeid.partition("::")
            name = Path(path)
            if name.parent.name in ("vllm", "sglang") and name.name.startswith("test_serve"):
                served = SERVED.search(test)
                return path + (served[0].strip("_") if served else "")
            return path

    return Files(config, log) if config.getvalue("dist") == "loadscope" else None


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

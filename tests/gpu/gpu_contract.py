"""The tests of the CPU kernels once more, with every tensor on the GPU."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mate_plugin.kernels import select

DEVICE = "cuda"
TESTS = Path(__file__).resolve().parent.parent
# Cases of tests/api_calls.py.
NO_KERNELS = ("sparse_mla", "prefix_mla")
# Random cases of each test: the CPU's run has more.
EXAMPLES = "40"

ON_THE_HOST = "looks at threads or memory of the host"
SAME_ON_A_CPU = "nothing of it reaches the device"


def require_gpu() -> None:
    """Skips the module that calls it where no GPU runs our kernels."""
    choice = select.choose("batched_gemm", DEVICE)
    if choice.impl is None:
        pytest.skip(choice.reason, allow_module_level=True)


@contextmanager
def _fresh_modules() -> Iterator[None]:
    """Modules of tests/ are imported anew: what they make while imported is on the GPU."""

    def ours() -> dict[str, Any]:
        return {
            name: module
            for name, module in sys.modules.items()
            if (file := getattr(module, "__file__", None)) and Path(file).parent == TESTS
        }

    before = ours()
    for name in before:
        del sys.modules[name]
    examples = os.environ.get("MATE_TEST_EXAMPLES")
    os.environ.setdefault("MATE_TEST_EXAMPLES", EXAMPLES)
    try:
        with torch.device(DEVICE):
            yield
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)
        if examples is None:
            del os.environ["MATE_TEST_EXAMPLES"]


def contract(skips: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The tests of some modules, each as ``test_<module>_<name>``, and their fixtures.

    ``skips`` holds, for each module, what does not apply to a GPU by name with the reason.
    """
    require_gpu()
    found: dict[str, Any] = {}
    with _fresh_modules():
        for module, skipped in skips.items():
            names = vars(importlib.import_module(f"test_{module}"))
            unknown = set(skipped) - set(names)
            assert not unknown, f"test_{module} has no {unknown}"
            for name, value in names.items():
                if name.startswith("test_") and callable(value):
                    if reason := skipped.get(name):
                        value = pytest.mark.skip(reason=reason)(value)
                    found[f"test_{module}_{name.removeprefix('test_')}"] = value
                elif _is_fixture(value):
                    found[name] = value
    return found


def _is_fixture(value: Any) -> bool:
    # Pytest 8.4 and newer have a class for them, older ones a mark on the function.
    return type(value).__name__ == "FixtureFunctionDefinition" or hasattr(
        value, "_pytestfixturefunction"
    )

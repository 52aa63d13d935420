"""The tests of the CPU kernels once more, with every tensor on another device."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mate_plugin.kernels import select

TESTS = Path(__file__).resolve().parent
# Cases of tests/api_calls.py.
NO_KERNELS = ("sparse_mla", "prefix_mla")
ON_THE_HOST = "looks at threads or memory of the host"
SAME_ON_A_CPU = "nothing of it reaches the device"
# Of index_topk: the host takes room for the widest context that the block table allows.
LENGTHS_ARE_NOT_READ = "asserts room for logits by the lengths, which stay on the device"

# Modules of tests/ whose tests run on devices; of each, what does not apply there, with the reason.
Modules = Mapping[str, Mapping[str, str]]
GEMMS: Modules = {
    "gemm_dense": {},
    "gemm_deep_gemm": {},
    "gemm_masked": {
        "test_a_consumer_that_spins_on_the_signal_sees_finished_rows": ON_THE_HOST,
    },
    "gemm_ragged_k": {},
    "gemm_ragged_m": {},
    "gemm_scale_ranks": {},
}
INDEXER: Modules = {
    "indexer": {},
    "indexer_bad_input": {},
    "indexer_cache": {},
    "index_topk": {
        "test_the_process_grows_no_more_than_the_budget": ON_THE_HOST,
        "test_concurrent_calls_are_counted_together": ON_THE_HOST,
        "test_long_contexts_stay_within_the_budget": LENGTHS_ARE_NOT_READ,
        "test_rows_that_see_no_more_than_k_tokens_take_all": LENGTHS_ARE_NOT_READ,
    },
}
PIECES: Modules = {
    "quant": {},
    "moe_pieces": {},
    "topk": {
        "test_denormals_are_told_apart_even_where_they_are_flushed": ON_THE_HOST,
    },
}
INPUT: Modules = {
    "bad_contents": {},
    "bad_input": {"test_a_device_without_kernels": SAME_ON_A_CPU},
    "bad_options": {},
    "compile": {},
}


def require(device: str) -> None:
    """Skips the module that calls it where no such device runs our kernels."""
    choice = select.choose("batched_gemm", device)
    if choice.impl is None:
        pytest.skip(choice.reason, allow_module_level=True)


@contextmanager
def _fresh_modules(device: str, most: int) -> Iterator[None]:
    """Modules of tests/ are imported anew: what they make while imported is on the device."""

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
    os.environ.setdefault("MATE_TEST_EXAMPLES", str(most))
    try:
        with torch.device(device):
            yield
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)
        if examples is None:
            del os.environ["MATE_TEST_EXAMPLES"]


def contract(device: str, modules: Modules, examples: int = 40) -> dict[str, Any]:
    """The tests of some modules, each as ``test_<module>_<name>``, and their fixtures.

    A test draws ``examples`` random cases at most; the CPU's run has more.
    """
    require(device)
    found: dict[str, Any] = {}
    with _fresh_modules(device, examples):
        for module, skipped in modules.items():
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


def skip_without_kernels(items: Iterable[pytest.Item], folder: Path, device: str) -> None:
    """Marks the cases below ``folder`` of ops that only CPUs have."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if folder in item.path.parents and params.get("call") in NO_KERNELS:
            reason = f"no {device.upper()} kernels: {params['call']}"
            item.add_marker(pytest.mark.skip(reason=reason))

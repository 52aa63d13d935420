"""The simulated device of these tests, with our kernels as g++ makes them run on the host."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import device_contract
import musa_device
import musa_native

from mate_plugin.kernels import library

DEVICE = "musa"
# Where libraries are built and kept; set by conftest.py.
FOLDER = Path()


@cache
def require_device() -> Path:
    """Brings the device into this process, for good; returns the library that has its kernels.

    Skips the module that calls it where there is no compiler.
    """
    os.environ.update(musa_device.environment(musa_device.build(FOLDER)))
    native = musa_native.build_on_host(FOLDER)
    spec = importlib.util.spec_from_file_location(
        "torch_musa", musa_device.PACKAGES / "torch_musa.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["torch_musa"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _find_here(native)
    return native


def _find_here(native: Path) -> None:
    elsewhere = library.find
    library.find = lambda name: native if name == native.name else elsewhere(name)


def contract(modules: device_contract.Modules) -> dict[str, Any]:
    """See :func:`device_contract.contract`."""
    require_device()
    return device_contract.contract(DEVICE, modules, examples=8)

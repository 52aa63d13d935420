"""The simulated device of these tests, with our kernels as g++ makes them run on the host."""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import device_contract
import musa_device
import musa_native

DEVICE = "musa"
# Where libraries are built and kept; set by conftest.py.
FOLDER = Path()


@cache
def require_device() -> Path:
    """Brings the device into this process, for good; returns the library that has its kernels.

    Skips the module that calls it where there is no compiler.
    """
    native = musa_native.build_on_host(FOLDER)
    os.environ.update(musa_device.environment(musa_device.build(FOLDER), native))
    sys.path.insert(0, str(musa_device.PACKAGES))
    importlib.import_module("torch_musa")
    return native


def contract(modules: device_contract.Modules) -> dict[str, Any]:
    """See :func:`device_contract.contract`."""
    require_device()
    return device_contract.contract(DEVICE, modules, examples=8)

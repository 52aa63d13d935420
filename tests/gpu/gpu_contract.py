"""The device of these tests."""

from __future__ import annotations

from typing import Any

import device_contract

DEVICE = "cuda"


def require_gpu() -> None:
    """Skips the module that calls it where no GPU runs our kernels."""
    device_contract.require(DEVICE)


def contract(modules: device_contract.Modules) -> dict[str, Any]:
    """See :func:`device_contract.contract`."""
    return device_contract.contract(DEVICE, modules)

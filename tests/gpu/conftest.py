"""Tests of the CUDA kernels: torch's default device is the GPU in each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import device_contract
import gpu_contract
import pytest
import torch

HERE = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def _default_device() -> Iterator[None]:
    torch.set_default_device(gpu_contract.DEVICE)
    yield
    torch.set_default_device(None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    device_contract.skip_without_kernels(items, HERE, gpu_contract.DEVICE)

"""Tests of the MUSA kernels, on the host: torch's default device is the simulated one in each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import device_contract
import musa_contract
import pytest
import torch

HERE = Path(__file__).resolve().parent


def pytest_configure(config: pytest.Config) -> None:
    musa_contract.FOLDER = Path(config.cache.mkdir("musa"))


@pytest.fixture(autouse=True)
def _default_device() -> Iterator[None]:
    torch.set_default_device(musa_contract.DEVICE)
    yield
    torch.set_default_device(None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    device_contract.skip_without_kernels(items, HERE, musa_contract.DEVICE)

"""Tests of the CUDA kernels: torch's default device is the GPU in each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import device_contract
import gpu_contract
import pytest
import torch

from mate_plugin.kernels import library

HERE = Path(__file__).resolve().parent


def _take_instead(built: Path) -> None:
    """The MUSA branch of our kernels, as nvcc compiles it (musa_native.build_for_nvidia), serves
    the tensors of an NVIDIA GPU."""
    elsewhere = library.find
    library.find = lambda name: built if name == library.LIBRARIES["cuda"] else elsewhere(name)


if branch := os.environ.get("MATE_TEST_MUSA_BRANCH"):
    _take_instead(Path(branch))


@pytest.fixture(autouse=True)
def _default_device() -> Iterator[None]:
    torch.set_default_device(gpu_contract.DEVICE)
    yield
    torch.set_default_device(None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    device_contract.skip_without_kernels(items, HERE, gpu_contract.DEVICE)

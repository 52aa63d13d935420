"""How a process with the vendor's stand-in sees which calls it got."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mate_plugin.kernels import library


def musa(value: Any) -> Any:
    """The same on the device, with the same strides."""
    if isinstance(value, tuple):
        return tuple(musa(one) for one in value)
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="musa").copy_(
        value
    )


def calls(name: str = "") -> list[dict[str, Any]]:
    """Arguments of the calls that the stand-in got since the last time, all of ``name``."""
    import vendor_calls

    found = list(vendor_calls.calls)
    vendor_calls.calls.clear()
    assert not name or all(function == name for function, _ in found), found
    return [arguments for _, arguments in found]


@contextlib.contextmanager
def served(name: str) -> Iterator[SimpleNamespace]:
    """One call of the vendor's ``name``; its arguments are there afterwards."""
    calls()
    before = sum(row["calls"] for row in library.counters() if row["impl"] == "vendor")
    seen = SimpleNamespace()
    yield seen
    (arguments,) = calls(name)
    vars(seen).update(arguments)
    after = [row for row in library.counters() if row["impl"] == "vendor"]
    assert sum(row["calls"] for row in after) == before + 1
    assert all(row["seconds"] > 0 for row in after)


def refused(reason: str, call: Callable[[], Any]) -> None:
    """The vendor is not asked, and our library is not there: both reasons are told."""
    calls()
    with pytest.raises(NotImplementedError) as caught:
        call()
    said = str(caught.value)
    assert "not available on 'musa': the vendor's mate 0.2." in said, said
    assert reason in said, said
    assert "libmate_musa.so is missing" in said, said
    assert not calls()

"""What the stand-ins for the vendor's packages share: checks of arguments, and their records.

``calls`` keeps the arguments of each call by name, ``streams`` the stream that tvm-ffi, through
which the vendor's libraries look it up, knew at that time.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
import tvm_ffi

Shape = tuple[int | None, ...]
calls: list[tuple[str, dict[str, Any]]] = []
streams: list[int] = []
VERSION = tuple(int(part) for part in os.environ.get("FAKE_MATE_VERSION", "0.2.2").split("."))
COMPLETE = (0, 2, 6)
# Without cleaning anything may stand there; what would be selected shows who reads it.
UNCLEAN = 1e30


def expect(
    name: str, value: Any, dtypes: torch.dtype | tuple[torch.dtype, ...], shape: Shape
) -> None:
    """A tensor of the device, of one of the types, of the shape, with dense rows."""
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    assert isinstance(value, torch.Tensor), f"{name}: expected a tensor, got {value!r}"
    assert value.device.type == "musa", f"{name}: expected the device musa, got {value.device}"
    assert value.dtype in dtypes, f"{name}: expected one of {dtypes}, got {value.dtype}"
    fits = value.dim() == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, value.shape, strict=True)
    )
    assert fits, f"{name}: expected the shape {shape}, got {tuple(value.shape)}"
    dense = value.dim() == 0 or value.shape[-1] == 1 or value.stride(-1) == 1
    assert dense, f"{name}: expected dense rows, got strides {value.stride()}"


def multiples(unit: int, **sizes: int) -> None:
    """Sizes that the vendor's own tests cover are multiples of these."""
    for name, size in sizes.items():
        assert size % unit == 0, f"{name}: {size} is no multiple of {unit}"


def contiguous(**tensors: torch.Tensor | None) -> None:
    for name, tensor in tensors.items():
        good = tensor is None or tensor.is_contiguous()
        assert good, f"{name}: expected a contiguous tensor, got strides {tensor.stride()}"


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep each call's arguments and stream."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        calls.append((function.__name__, dict(bound.arguments)))
        streams.append(int(tvm_ffi.get_raw_stream(tvm_ffi.device("ext_dev", 0))))
        return function(*args, **options)

    return call


def with_backend(function: Callable[..., Any]) -> Callable[..., Any]:
    """Newer releases let the caller choose between two sets of kernels for some functions."""
    if VERSION < COMPLETE:
        return function
    signature = inspect.signature(function)
    added = inspect.Parameter("backend", inspect.Parameter.POSITIONAL_OR_KEYWORD, default="auto")

    @functools.wraps(function)
    def call(*args: Any, backend: str = "auto", **options: Any) -> Any:
        assert backend in ("auto", "mubin", "mutlass"), f"backend: got {backend!r}"
        return function(*args, **options)

    call.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])
    return call

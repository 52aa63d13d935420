"""TileLang: whether it is there, what it compiles for, and compiling."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

# Makes a TileLang function for shapes and the name of an FP8 type.
Build = Callable[..., Any]
# Moore Threads' fork knows e4m3fn by the other name, and its units take no other.
FP8 = {"cuda": "float8_e4m3fn", "musa": "float8_e4m3"}
# Compiled ops of which some forms have a program.
OPS = ("ragged_m_gemm", "masked_gemm")
_CAPABILITY = {"cuda": (9, 0), "musa": (3, 1)}


@functools.lru_cache(maxsize=1)
def package() -> Any:
    """The module ``tilelang``, or why it cannot be imported."""
    try:
        return importlib.import_module("tilelang")
    except Exception as error:
        # Somebody else's package may fail in any way; the caller says so.
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return f"tilelang cannot be imported ({said})"


def obstacle(kind: str) -> str:
    """Why TileLang compiles nothing for a kind of device; empty where it does."""
    if kind not in FP8:
        return f"TileLang kernels are for {' and '.join(FP8)} devices"
    tilelang = package()
    if isinstance(tilelang, str):
        return tilelang
    # Both builds are called tilelang; only the fork calls mcc.
    if kind == "musa" and importlib.util.find_spec("tilelang.contrib.mcc") is None:
        return f"tilelang {tilelang.__version__} is not Moore Threads' build for MUSA"
    return ""


@functools.lru_cache(maxsize=64)
def why_not(kind: str, index: int | None, capability: tuple[int, int] | None = None) -> str:
    """Why there are no TileLang kernels on a device; empty where there are.

    ``capability`` is the device's, from callers that know it.
    """
    if reason := obstacle(kind):
        return reason
    wanted = _CAPABILITY[kind]
    found = capability or getattr(torch, kind).get_device_capability(index)
    if found == wanted:
        return ""
    return (
        f"TileLang kernels are for compute capability {wanted[0]}.{wanted[1]}, found"
        f" {found[0]}.{found[1]}"
    )


def describe() -> str:
    """The package in words, or why it cannot be imported."""
    tilelang = package()
    return tilelang if isinstance(tilelang, str) else f"TileLang {tilelang.__version__}"


def target(kind: str) -> Any:
    """What TileLang compiles for."""
    if kind == "musa":
        return "musa -arch=mp_31"
    return {"kind": "cuda", "arch": "sm_90a"}


def _options(kind: str) -> dict[Any, Any]:
    keys = package().PassConfigKey
    wanted = {"TL_DISABLE_FAST_MATH": True}  # infinities and NaN count
    if kind == "musa":
        # What the fork tests its FP8 products with.
        wanted |= {"TL_DISABLE_WARP_SPECIALIZED": True, "TL_DISABLE_TMA_LOWER": True}
    return {getattr(keys, key): value for key, value in wanted.items() if hasattr(keys, key)}


def compiled(build: Build, kind: str, *shape: Any) -> Any:
    """``build(*shape, fp8)`` compiled for a kind of device, to call with its tensors."""
    if reason := obstacle(kind):
        raise NotImplementedError(f"{build.__name__}: {reason}")
    function = build(*shape, FP8[kind])
    return package().compile(function, target=target(kind), pass_configs=_options(kind))

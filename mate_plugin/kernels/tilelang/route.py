"""The TileLang kernels as what comes before our library, and their compiling at first calls."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from mate_plugin.kernels.calls import Calls, on_stream
from mate_plugin.kernels.forms import Later
from mate_plugin.kernels.tilelang import cache, grouped
from mate_plugin.kernels.tilelang.grouped_program import grouped_gemm

calls = Calls("tilelang")

OPS: dict[str, Callable[..., grouped.Launch | str | None]] = {
    op: getattr(grouped, op) for op in cache.OPS
}

# A kernel is loaded onto a device by its first call there, which is no work for a capture.
_Key = tuple[torch.device, grouped.Shape]
# What was compiled, and why something could not be.
_kernels: dict[_Key, Any] = {}
_failed: dict[_Key, Later] = {}
_lock = threading.Lock()


class _Provider:
    calls = calls

    def serve(self, op: str, arguments: tuple[Any, ...]) -> str:
        device, stream = arguments[0].device, arguments[-1]
        if reason := cache.why_not(device.type, device.index):
            return reason
        launch = OPS[op](*arguments)
        if launch is None:
            return ""
        if isinstance(launch, str):
            return f"TileLang: {launch}"
        return run(op, launch, device, stream)


PROVIDER = _Provider()


def run(op: str, launch: grouped.Launch, device: torch.device, stream: int) -> str:
    """Queue a call, compiled before if need be; or the reason why it cannot be now."""
    key = device, launch.shape
    kernel = _kernels.get(key)
    if kernel is None:
        return _first(op, key, launch, device, stream)
    start = time.perf_counter()
    with _on(device, stream):
        kernel(*launch.tensors)
    calls.serve(op, time.perf_counter() - start)
    return ""


def _first(op: str, key: _Key, launch: grouped.Launch, device: torch.device, stream: int) -> str:
    """Compile for a shape and call: whatever TileLang raises, the call can be served by others."""
    with _lock:
        if key in _failed:
            return _failed[key]
        kernel = _kernels.get(key)  # another thread may have compiled it meanwhile
        if kernel is None and _capturing(device.type):
            return Later("TileLang: a graph is captured before the first call of this shape")
        layout, experts, n, k, *_ = launch.shape
        what = f"{op} ({layout}, E = {experts}, N = {n}, K = {k})"
        start = time.perf_counter()
        try:
            kernel = kernel or cache.compiled(grouped_gemm, device.type, *launch.shape)
            compiled = time.perf_counter()
            with _on(device, stream):
                kernel(*launch.tensors)
        except Exception as error:
            # A package of somebody else's compiles while a model is served.
            said = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            _failed[key] = Later(f"TileLang failed for {what}: {said}")
            calls.logger.warning("%s; mate-plugin's library serves it", _failed[key])
            return _failed[key]
        _kernels[key] = kernel
    calls.logger.info("TileLang compiled %s in %.1f s", what, compiled - start)
    calls.serve(op, time.perf_counter() - compiled)
    return ""


def _capturing(kind: str) -> bool:
    """Whether the current stream records a graph, during which nothing may be loaded."""
    ask = getattr(getattr(torch, kind), "is_current_stream_capturing", None)
    return bool(ask and ask())


@contextlib.contextmanager
def _on(device: torch.device, stream: int) -> Any:
    """The device and the stream of a call. What TileLang compiles asks torch for the stream, or
    tvm-ffi."""
    with getattr(torch, device.type).device(device), on_stream(device, stream):
        yield

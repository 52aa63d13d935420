"""Which kernels run an op on a ``musa`` tensor: the vendor's where they serve it, else ours."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypedDict

import torch

from mate_plugin.kernels import library
from mate_plugin.kernels.vendor import dense, grouped, indexer
from mate_plugin.kernels.vendor.forms import NOTHING, Call, Form
from mate_plugin.kernels.vendor.package import FUNCTIONS, Vendor, find

logger = logging.getLogger("mate_plugin.vendor")

_KIND = "musa"
_FORMS: dict[str, Callable[..., Form]] = {
    "ragged_m_gemm": grouped.ragged_m_gemm,
    "masked_gemm": grouped.masked_gemm,
    "ragged_k_gemm": grouped.ragged_k_gemm,
    "batched_gemm": dense.batched_gemm,
    "paged_mqa_metadata": indexer.paged_mqa_metadata,
    "paged_mqa_logits": indexer.paged_mqa_logits,
    "mqa_logits": indexer.mqa_logits,
}
# Where the tensor to write stands, for functions that return one of their own.
_OUT = {"paged_mqa_metadata": 1, "paged_mqa_logits": 5, "mqa_logits": 6}
_SIGNAL_UNITS = "masked_signal_units"
_EMPTY_UNITS = (128, 128)


class Refusal(TypedDict):
    """Calls of an op on ``musa`` that the vendor did not serve, and why."""

    op: str
    reason: str
    calls: int


_lock = threading.Lock()
_counts: dict[str, list[float]] = {}
_refusals: dict[tuple[str, str], int] = {}
# Of the last masked GEMM of this thread: the signal, and the blocks in which it was counted.
_last = threading.local()


def route(op: str, ours: Callable[..., Any]) -> Callable[..., Any]:
    """The function that eager calls of ``op`` on ``musa`` tensors go to.

    ``ours`` runs the same arguments in our library.
    """
    if op == _SIGNAL_UNITS:
        return lambda *arguments: _signal_units(ours, *arguments)
    if op not in FUNCTIONS:
        return ours

    def run(*arguments: Any) -> Any:
        vendor, form = _form(op, arguments)
        if isinstance(form, str):
            _refuse(op, form)
            return ours(*arguments)
        if form is NOTHING:
            return None
        result = _call(op, vendor, form, arguments)
        if op in _OUT:
            arguments[_OUT[op]].copy_(result)
        elif form.arguments.get("enable_overlap"):
            _last.signal, _last.units = form.arguments["signal"], result[2:]
        return None

    run.__name__ = run.__qualname__ = op
    return run


def logits(op: str, *arguments: Any) -> torch.Tensor | None:
    """The tensor that the vendor's function returns, so that it need not be copied.

    ``arguments`` are those of the op with the number of columns in the place of ``out``. None for
    another device, while a graph is traced, and where the vendor does not serve the call.
    """
    first = arguments[0]
    if first.device.type != _KIND or library.is_compiling() or type(first) not in library.PLAIN:
        return None
    if 0 in (first.shape[0], arguments[_OUT[op]]):
        return None
    vendor, form = _form(op, arguments)
    if isinstance(form, str):
        return None
    result: torch.Tensor = _call(op, vendor, form, arguments)
    return result


def _form(op: str, arguments: tuple[Any, ...]) -> tuple[Vendor | None, Form]:
    vendor = None if os.environ.get("MATE_PLUGIN_IMPL") == "portable" else find()
    if vendor is None:
        return None, "MATE_PLUGIN_IMPL=portable asks for ours"
    if isinstance(vendor, str):
        return None, vendor
    form = _FORMS[op](vendor, *arguments)
    if isinstance(form, Call) and form.function in vendor.lacking:
        return vendor, vendor.lacking[form.function]
    return vendor, f"{vendor.name}: {form}" if isinstance(form, str) else form


def _call(op: str, vendor: Vendor | None, form: Call, arguments: tuple[Any, ...]) -> Any:
    assert vendor is not None
    start = time.perf_counter()
    with _on_stream(arguments[0].device, arguments[-1]):
        result = vendor.functions[form.function](**form.arguments)
    took = time.perf_counter() - start
    with _lock:
        count = _counts.setdefault(op, [0, 0.0])
        count[0] += 1
        count[1] += took
    return result


def _on_stream(device: torch.device, stream: int) -> contextlib.AbstractContextManager[Any]:
    """tvm-ffi, through which the vendor looks its stream up, knows none of torch's private
    devices."""
    import tvm_ffi

    return tvm_ffi.use_raw_stream(tvm_ffi.device("ext_dev", device.index or 0), stream)


def _refuse(op: str, reason: str) -> None:
    """Note that ours takes a call; raises where ours cannot, or was not asked for."""
    if os.environ.get("MATE_PLUGIN_IMPL") == "vendor":
        raise NotImplementedError(f"{op}: MATE_PLUGIN_IMPL=vendor, but {reason}")
    if missing := library.missing(_KIND):
        raise NotImplementedError(f"{op}: not available on {_KIND!r}: {reason}; {missing}")
    with _lock:
        new = (op, reason) not in _refusals
        _refusals[op, reason] = _refusals.get((op, reason), 0) + 1
    if new:
        logger.info("%s runs on mate-plugin's kernels: %s", op, reason)


def _signal_units(ours: Callable[..., Any], *arguments: Any) -> tuple[int, int]:
    """Rows and columns of the blocks in which the masked GEMM just made counted its signal."""
    out, signal = arguments[5], arguments[6]
    if out.numel() == 0:
        return _EMPTY_UNITS
    if signal is None or getattr(_last, "signal", None) is not signal:
        units: tuple[int, int] = ours(*arguments)
        return units
    block_m, threshold = _last.units
    _last.signal = None
    # The least width of which ``threshold`` cover the columns.
    return int(block_m), -(-out.shape[-1] // int(threshold))


def counters() -> list[tuple[str, int, float]]:
    """Per op the calls that the vendor served and their seconds on the host."""
    with _lock:
        return [(op, int(calls), seconds) for op, (calls, seconds) in _counts.items()]


def refusals() -> list[Refusal]:
    """The calls of this process that the vendor's API covers and ours served, by reason."""
    with _lock:
        found = [Refusal(op=op, reason=why, calls=n) for (op, why), n in _refusals.items() if n]
    return sorted(found, key=lambda one: (one["op"], one["reason"]))


def reset() -> None:
    """Sets all counts to zero; what was logged is not logged again."""
    with _lock:
        _counts.clear()
        for key in _refusals:
            _refusals[key] = 0

"""The vendor's kernels as what comes first for an op on a ``musa`` tensor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from mate_plugin.kernels import library
from mate_plugin.kernels.calls import Calls, on_stream
from mate_plugin.kernels.forms import NOTHING, Call, Form
from mate_plugin.kernels.vendor import dense, grouped, indexer
from mate_plugin.kernels.vendor.package import FUNCTIONS, Vendor, find

calls = Calls("vendor")

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
OPS = FUNCTIONS
# Where the tensor to write stands, for functions that return one of their own.
_OUT = {"paged_mqa_metadata": 1, "paged_mqa_logits": 5, "mqa_logits": 6}
SIGNAL_UNITS = "masked_signal_units"
_EMPTY_UNITS = (128, 128)

# Of the last masked GEMM of this thread: the signal, and the blocks in which it was counted.
_last = threading.local()


class _Provider:
    calls = calls

    def serve(self, op: str, arguments: tuple[Any, ...]) -> str:
        vendor, form = _form(op, arguments)
        if isinstance(form, str):
            return form
        if form is NOTHING:
            return ""
        result = _call(op, vendor, form, arguments)
        if op in _OUT:
            arguments[_OUT[op]].copy_(result)
        elif form.arguments.get("enable_overlap"):
            _last.signal, _last.units = form.arguments["signal"], result[2:]
        return ""


PROVIDER = _Provider()


def logits(op: str, *arguments: Any) -> torch.Tensor | None:
    """The tensor that the vendor's function returns, so that it need not be copied.

    ``arguments`` are those of the op with the number of columns in the place of ``out``. None for
    another device, while a graph is traced, and where the vendor does not serve the call.
    """
    first = arguments[0]
    if first.device.type != _KIND or library.is_compiling() or type(first) not in library.PLAIN:
        return None
    if 0 in (first.shape[0], arguments[_OUT[op]]) or calls.unasked(_KIND):
        return None
    vendor, form = _form(op, arguments)
    if isinstance(form, str):
        return None
    result: torch.Tensor = _call(op, vendor, form, arguments)
    return result


def _form(op: str, arguments: tuple[Any, ...]) -> tuple[Vendor | None, Form]:
    vendor = find()
    if isinstance(vendor, str):
        return None, vendor
    form = _FORMS[op](vendor, *arguments)
    if isinstance(form, Call) and form.function in vendor.lacking:
        return vendor, vendor.lacking[form.function]
    return vendor, f"{vendor.name}: {form}" if isinstance(form, str) else form


def _call(op: str, vendor: Vendor | None, form: Call, arguments: tuple[Any, ...]) -> Any:
    assert vendor is not None
    start = time.perf_counter()
    with on_stream(arguments[0].device, arguments[-1]):
        result = vendor.functions[form.function](**form.arguments)
    calls.serve(op, time.perf_counter() - start)
    return result


def signal_units(ours: Callable[..., Any], *arguments: Any) -> tuple[int, int]:
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

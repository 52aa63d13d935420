"""Lets mate-plugin find the kernels that were built for the host, as if they were installed, and a
graph record them."""

from __future__ import annotations

import ctypes
import os
from functools import partial
from pathlib import Path

import musa_graph

from mate_plugin.kernels import library

BUILT = Path(os.environ["FAKE_MUSA_LIBRARY"])
elsewhere = library.find
_native = ctypes.CDLL(str(BUILT))
_Recorder = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_void_p)


def _find(name: str) -> Path | None:
    if name == BUILT.name:
        return BUILT
    return elsewhere(name)


@_Recorder
def _recorded(number: int, _stream: int | None) -> None:
    musa_graph.launch(partial(_native.simt_run, ctypes.c_uint64(number)))


def _record(wanted: bool) -> None:
    _native.simt_set_recorder(_recorded if wanted else None)


library.find = _find
musa_graph.recorders.append(_record)

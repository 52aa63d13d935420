"""A stand-in for torch_musa: the simulated device, and of ``torch.musa`` what is asked of it.

Streams have handles and no queues: work runs when it is submitted. A graph records instead.
"""

from __future__ import annotations

import contextlib
import os
import sys
from types import SimpleNamespace

import torch
from musa_graph import MUSAGraph, graph, is_current_stream_capturing, launch
from musa_stream import Event, Stream, current_stream, default_stream, set_stream, stream

torch.ops.load_library(os.environ["FAKE_MUSA_DEVICE"])
torch.utils.rename_privateuse1_backend("musa")
__all__ = [
    "Event",
    "MUSAGraph",
    "Stream",
    "current_stream",
    "default_stream",
    "graph",
    "is_current_stream_capturing",
    "launch",
    "set_stream",
    "stream",
]
PROPERTIES = SimpleNamespace(
    name="simulated", major=3, minor=1, multi_processor_count=6, total_memory=1 << 30
)


def is_available() -> bool:
    return True


def device_count() -> int:
    return 1


def current_device() -> int:
    return 0


def set_device(_device: object) -> None:
    pass


def _is_in_bad_fork() -> bool:
    return False


def is_initialized() -> bool:
    return True


def manual_seed_all(_seed: int) -> None:
    pass


def synchronize(_device: object = None) -> None:
    pass


def get_device_capability(_device: object = None) -> tuple[int, int]:
    return PROPERTIES.major, PROPERTIES.minor


def get_device_properties(_device: object = None) -> SimpleNamespace:
    return PROPERTIES


def mem_get_info(_device: object = None) -> tuple[int, int]:
    return PROPERTIES.total_memory, PROPERTIES.total_memory


def device(_device: object) -> contextlib.nullcontext:
    return contextlib.nullcontext()


class SwishGLU(torch.nn.Module):
    """A layer that the vendor adds to ``torch.nn``; SGLang makes one when it is imported."""


torch.nn.SwishGLU = SwishGLU
torch._register_device_module("musa", sys.modules[__name__])
torch.utils.generate_methods_for_privateuse1_backend()
torch.version.musa = "simulated"
if "FAKE_MUSA_LIBRARY" in os.environ:
    import fake_musa_library  # noqa: F401

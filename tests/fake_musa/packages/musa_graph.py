"""A graph of the simulated device: what is submitted while it records, run again at a replay.

Operators of torch run while they are recorded, so that they have shapes, and again at each replay,
into the same tensors. Kernels that go through ``launch`` run at replays only. Reading the device on
the host raises, as it does on hardware.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from musa_stream import Stream
from musa_stream import stream as on_stream
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

_recording: MUSAGraph | None = None
# Of libraries whose kernels ``launch`` gets while they are on.
recorders: list[Callable[[bool], None]] = []


class MUSAGraph:
    """Work to be run again, in order."""

    def __init__(self) -> None:
        self.nodes: list[Callable[[], None]] = []

    def replay(self) -> None:
        for node in self.nodes:
            node()

    def reset(self) -> None:
        self.nodes.clear()


def launch(kernel: Callable[[], None]) -> None:
    """Run a kernel, or record it."""
    if _recording is None:
        kernel()
    else:
        _recording.nodes.append(kernel)


def is_current_stream_capturing() -> bool:
    return _recording is not None


@contextlib.contextmanager
def graph(recorded: MUSAGraph, *, stream: Stream | None = None, **_options: object) -> Any:
    """Record into ``recorded``, on a stream of its own."""
    global _recording
    with on_stream(stream or Stream()), _Operators(recorded):
        _recording = recorded
        for switch in recorders:
            switch(True)
        try:
            yield
        finally:
            for switch in recorders:
                switch(False)
            _recording = None


def _on_device(values: Any) -> bool:
    flat = tree_flatten(values)[0]
    return any(isinstance(x, torch.Tensor) and x.device.type == "musa" for x in flat)


class _Operators(TorchDispatchMode):
    def __init__(self, recorded: MUSAGraph) -> None:
        super().__init__()
        self.nodes = recorded.nodes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = _on_device((args, kwargs))
        result = func(*args, **kwargs)
        to_host = func is torch.ops.aten.copy_.default and args[0].is_cpu
        made = [x for x in tree_flatten(result)[0] if isinstance(x, torch.Tensor)]
        if given and (to_host or (func._schema.returns and not _on_device(made))):
            raise RuntimeError(f"{func}: reads the device while a graph is recorded")
        if not given and not _on_device(made):
            return result
        written = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
        if not written and any(one.alias_info for one in func._schema.returns):
            return result  # a view

        def node() -> None:
            again = func(*args, **kwargs)
            if not written:
                fresh = [x for x in tree_flatten(again)[0] if isinstance(x, torch.Tensor)]
                for old, new in zip(made, fresh, strict=True):
                    old.copy_(new)

        self.nodes.append(node)
        return result

"""Calls that Python gives to kernels of a package that may be there: how many, how long, which not.

Our own libraries count theirs; a package's are counted here, beside the calls that went past it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import Any, TypedDict

import torch

VARIABLE = "MATE_PLUGIN_IMPL"


def wanted() -> str:
    """What ``MATE_PLUGIN_IMPL`` asks for at this moment."""
    return os.environ.get(VARIABLE) or "auto"


class Refusal(TypedDict):
    """Calls of an op that an implementation did not serve, and why."""

    op: str
    reason: str
    calls: int


_all: list[Calls] = []


def every() -> list[Calls]:
    """The implementations that were asked in this process."""
    return list(_all)


class Calls:
    """The counts of one implementation; ``logger`` tells each reason of a refusal once."""

    def __init__(self, impl: str) -> None:
        self.impl = impl
        self.logger = logging.getLogger(f"mate_plugin.{impl}")
        self._lock = threading.Lock()
        self._served: dict[str, list[float]] = {}
        self._refusals: dict[tuple[str, str], int] = {}
        _all.append(self)

    def unasked(self, kind: str) -> str:
        """Why ``MATE_PLUGIN_IMPL`` leaves this implementation out; empty where it does not."""
        name = wanted()
        # By itself nothing that is not ours serves NVIDIA's GPUs.
        if name == self.impl or (name == "auto" and kind != "cuda"):
            return ""
        return f"{VARIABLE}={name} asks for others"

    def serve(self, op: str, seconds: float) -> None:
        """Count a call that was served, and its time on the host."""
        with self._lock:
            count = self._served.setdefault(op, [0, 0.0])
            count[0] += 1
            count[1] += seconds

    def refuse(self, op: str, reason: str) -> None:
        """Count a call that others served."""
        with self._lock:
            new = (op, reason) not in self._refusals
            self._refusals[op, reason] = self._refusals.get((op, reason), 0) + 1
        if new:
            self.logger.info("%s runs on mate-plugin's kernels: %s", op, reason)

    def counters(self) -> list[tuple[str, int, float]]:
        """Per op the calls that were served and their seconds on the host."""
        with self._lock:
            return [(op, int(calls), seconds) for op, (calls, seconds) in self._served.items()]

    def refusals(self) -> list[Refusal]:
        """The calls of this process that others served, by reason."""
        with self._lock:
            found = [Refusal(op=op, reason=why, calls=n) for (op, why), n in self._refusals.items()]
        return sorted(
            (one for one in found if one["calls"]), key=lambda one: (one["op"], one["reason"])
        )

    def reset(self) -> None:
        """Sets all counts to zero; what was logged is not logged again."""
        with self._lock:
            self._served.clear()
            for key in self._refusals:
                self._refusals[key] = 0


def on_stream(device: torch.device, stream: int) -> contextlib.AbstractContextManager[Any]:
    """Makes ``stream`` the one that packages find who look it up in tvm-ffi.

    For NVIDIA's GPUs tvm-ffi asks torch, but it knows none of torch's private devices.
    """
    if device.type == "cuda":
        return contextlib.nullcontext()
    import tvm_ffi

    return tvm_ffi.use_raw_stream(tvm_ffi.device("ext_dev", device.index or 0), stream)

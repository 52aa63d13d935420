"""Which implementation serves an op on a device, or the reason why none does."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mate_plugin.kernels import library

_REASONS = {
    "cuda": "the CUDA kernels are not part of this version",
    "musa": "the kernels for Moore Threads GPUs are not part of this version",
}


@dataclass(frozen=True)
class Choice:
    """The implementation of one op on one device; ``impl`` is None where there is none."""

    op: str
    device: str
    impl: str | None
    reason: str


def choose(op: str, device: torch.device | str) -> Choice:
    """Names the implementation of ``op`` on ``device`` and why it is taken or missing."""
    # By name: torch knows "musa" only where its package is imported.
    kind = str(device).partition(":")[0]
    if kind == "cpu":
        isa = library.isa()
        best = library.available_isas()[0]
        reason = "best this machine runs" if isa == best else "forced by MATE_PLUGIN_ISA"
        return Choice(op, kind, isa, reason)
    reason = _REASONS.get(kind, "no kernels for this kind of device")
    return Choice(op, kind, None, reason)


def require(op: str, device: torch.device) -> None:
    """Raises ``NotImplementedError`` with the reason where ``op`` has no kernel on ``device``."""
    if device.type == "cpu":
        return
    choice = choose(op, device)
    if choice.impl is None:
        raise NotImplementedError(f"{op}: not available on {choice.device!r}: {choice.reason}")

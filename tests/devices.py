"""What tests ask of the device they run on, which is torch's default device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from mate_plugin.kernels import select

Out = TypeVar("Out")


def seeded(seed: int) -> torch.Generator:
    """Random numbers of that device, or of the CPU where it is simulated and has none."""
    device = torch.get_default_device()
    return torch.Generator("cpu" if device.type == "musa" else device).manual_seed(seed)


def captured(run: Callable[[], Out], device: str = "") -> tuple[Any, Out]:
    """A graph of ``run`` on a kind of device, the default one if none is named, and what ``run``
    gave, to which replays write."""
    kind = device or torch.get_default_device().type
    module = getattr(torch, kind)
    graph = getattr(module, f"{kind.upper()}Graph")()
    with module.graph(graph):
        out = run()
    return graph, out


def on_cpu() -> bool:
    return torch.get_default_device().type == "cpu"


def tensor_core_slack(x: torch.Tensor) -> float:
    """Error of FP8 products relative to the sum of their magnitudes, beside that of float32 sums.

    Hopper's tensor cores keep about 13 fraction bits of a sum of FP8 products.
    """
    if x.is_cpu:
        return 0.0
    return 2.0**-13 if select.choose("batched_gemm", x.device).impl == "sm90a" else 0.0

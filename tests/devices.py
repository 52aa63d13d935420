"""What tests ask of the device they run on, which is torch's default device."""

from __future__ import annotations

import torch

from mate_plugin.kernels import select


def seeded(seed: int) -> torch.Generator:
    """Random numbers of that device, or of the CPU where it is simulated and has none."""
    device = torch.get_default_device()
    return torch.Generator("cpu" if device.type == "musa" else device).manual_seed(seed)


def on_cpu() -> bool:
    return torch.get_default_device().type == "cpu"


def tensor_core_slack(x: torch.Tensor) -> float:
    """Error of FP8 products relative to the sum of their magnitudes, beside that of float32 sums.

    Hopper's tensor cores keep about 13 fraction bits of a sum of FP8 products.
    """
    if x.is_cpu:
        return 0.0
    return 2.0**-13 if select.choose("batched_gemm", x.device).impl == "sm90a" else 0.0

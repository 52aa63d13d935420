"""A stand-in for vllm-musa, which brings vLLM a platform for Moore Threads GPUs."""

from __future__ import annotations

import torch_musa
from vllm.platforms.interface import DeviceCapability, Platform, PlatformEnum


def platform() -> str:
    """What vLLM's entry point wants: the platform's class by name."""
    return f"{__name__}.Musa"


class Musa(Platform):
    _enum = PlatformEnum.OOT
    device_name = "musa"
    device_type = "musa"
    dispatch_key = "PrivateUse1"
    dist_backend = "gloo"

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        return DeviceCapability(*torch_musa.get_device_capability(device_id))

    @classmethod
    def get_device_name(cls, _device_id: int = 0) -> str:
        return torch_musa.PROPERTIES.name

    @classmethod
    def import_kernels(cls) -> None:
        """There are none."""

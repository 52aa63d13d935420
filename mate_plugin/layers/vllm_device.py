"""The device that vLLM runs on, and what of it our layers serve."""

from __future__ import annotations

from typing import Any, Literal

from mate_plugin.config import GPUS, settings
from mate_plugin.layers.configured import plan_for
from mate_plugin.layers.plan import ExpertsPlan


def kind() -> str:
    """The platform's name for its devices: cpu, cuda, musa, ..."""
    from vllm.platforms import current_platform

    return str(current_platform.device_type)


def capability() -> tuple[int, int] | None:
    """Compute capability of the GPUs as vLLM knows it, without starting the device up: vLLM's
    processes may fork after their plugins were loaded. None where there is no such number."""
    from vllm.platforms import current_platform

    found = current_platform.get_device_capability() if kind() in GPUS else None
    return None if found is None else (found.major, found.minor)


def served(layers: Literal["moe", "linear"]) -> bool:
    """Whether the settings put layers of this kind on our kernels here."""
    device = kind()
    return device == "cpu" or (
        device in GPUS and bool(getattr(getattr(settings(), device), layers))
    )


def plan(limit: float | None = None) -> ExpertsPlan:
    """The plan of one FP8 MoE layer here; ``limit`` is its clamp of SwiGLU.

    Raises ValueError where the settings ask for what no layer serves, NotImplementedError where
    the device has no kernels.
    """
    return plan_for(kind(), limit, capability=capability())


def unproved(parallel: Any) -> str | None:
    """Why experts in this FusedMoEParallelConfig are left to vLLM, or None."""
    if kind() not in GPUS:
        return None
    passed_on = getattr(parallel, "use_passthrough_all2all", False)
    if parallel.dp_size > 1 or parallel.use_all2all_kernels or passed_on:
        return (
            "expected tokens that stay in their process, got data parallelism or all-to-all kernels"
            f" ({parallel.all2all_backend}), with which these experts never ran on a GPU"
        )
    return None

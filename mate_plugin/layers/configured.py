"""Plans of MoE layers as the settings in force want them."""

from __future__ import annotations

import torch

from mate_plugin.config import settings
from mate_plugin.layers.plan import ExpertsPlan, WeightBits, block_of, plan_experts


def plan_for(
    device: torch.device | str,
    limit: float | None = None,
    weight_bits: WeightBits = 8,
    capability: tuple[int, int] | None = None,
) -> ExpertsPlan:
    """The plan of one MoE layer on ``device``; ``limit`` is its clamp of SwiGLU and ``capability``
    that of the GPU, where it is known already.

    Raises ValueError where the settings ask for what no layer serves, NotImplementedError where
    the device has no kernels.
    """
    conf = settings()
    alignment = None if conf.alignment_m == "auto" else conf.alignment_m
    block = block_of(conf.scale_granularity)
    return plan_experts(
        device,
        block,
        conf.activation,
        conf.gemm_mode,
        alignment,
        limit,
        weight_bits,
        capability,
    )

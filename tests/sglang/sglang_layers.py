"""SGLang's own layers, made and filled without a model."""

from __future__ import annotations

from typing import Any

import torch
from layer_oracle import MoeWeights


def publish(backend: str = "mate") -> None:
    """Let layers be made in this process: one rank, MoE layers on ``backend``."""
    from sglang.srt.layers.moe.utils import resolve_moe_runner_backend
    from sglang.srt.runtime_context import get_context, get_flags, get_parallel

    get_context().override_server_args().install()
    get_flags().moe.runner_backend = resolve_moe_runner_backend(backend)
    ranks = dict.fromkeys(("tp_rank", "moe_ep_rank", "moe_tp_rank", "moe_dp_rank"), 0)
    get_parallel().override_permanently(tp_size=1, tp_group=None, **ranks)


def bare(cls: type) -> Any:
    """A layer of a class without its parameters, which is enough to be given a method."""
    layer = cls.__new__(cls)
    torch.nn.Module.__init__(layer)
    return layer


def fp8_config(config: Any = None, block: list[int] | None = None, **changes: Any) -> Any:
    """A config for FP8 blocks; of SGLang's class unless another is given."""
    from sglang.srt.layers.quantization.fp8 import Fp8Config

    fields = {
        "is_checkpoint_fp8_serialized": True,
        "activation_scheme": "dynamic",
        "weight_block_size": block or [128, 128],
    }
    return (config or Fp8Config)(**fields | changes)


def fused_moe(weights: MoeWeights, quant_config: Any, topk: int, **options: Any) -> Any:
    """SGLang's FusedMoE with ``weights`` loaded by its own loader, ready to run."""
    from sglang.srt.layers.moe.fused_moe_triton import FusedMoE

    experts, hidden, inner = weights.w2.shape
    layer = FusedMoE(
        num_experts=experts,
        hidden_size=hidden,
        intermediate_size=inner,
        layer_id=0,
        top_k=topk,
        quant_config=quant_config,
        prefix="model.layers.0.mlp.experts",
        params_dtype=torch.bfloat16,
        **options,
    )
    pairs = [("weight", weights.w13, weights.w2)]
    if weights.w13_scale is not None:
        pairs.append(("weight_scale_inv", weights.w13_scale, weights.w2_scale))
    for name, w13, w2 in pairs:
        for e in range(experts):
            gate, up = w13[e].chunk(2)
            for shard, part in (("w1", gate), ("w3", up), ("w2", w2[e])):
                parameter = getattr(layer, f"{'w2' if shard == 'w2' else 'w13'}_{name}")
                parameter.weight_loader(parameter, part, f"experts.{name}", shard, e)
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def load_linear(layer: Any, *parts: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Load FP8 ``(weight, scale)`` by the layer's own loader; several parts for merged columns."""
    for shard, part in enumerate(parts):
        for name, tensor in zip(("weight", "weight_scale_inv"), part, strict=True):
            parameter = getattr(layer, name)
            where = (shard,) if len(parts) > 1 else ()
            parameter.weight_loader(parameter, tensor, *where)
    layer.quant_method.process_weights_after_loading(layer)

"""A whole MoE layer of vLLM, made, loaded and called as a model does it, in one process."""

# vLLM fixes the signatures of what it calls.
# ruff: noqa: ARG001

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from layer_oracle import MoeWeights

BF16 = torch.bfloat16
TOPK = 3


@contextmanager
def vllm_process(device: str, expert_parallel: bool = False) -> Iterator[Any]:
    """vLLM's configuration, process groups and workspace, of this process alone."""
    import tempfile

    from vllm.config import ParallelConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.forward_context import set_forward_context
    from vllm.v1.worker.workspace import init_workspace_manager

    parallel = ParallelConfig(enable_expert_parallel=expert_parallel)
    config = VllmConfig(parallel_config=parallel)
    with tempfile.NamedTemporaryFile() as store, set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"file://{store.name}", 0, backend="gloo")
        initialize_model_parallel(1, 1)
        init_workspace_manager(torch.device(device))
        with set_forward_context(None, config):
            yield config


def route(
    hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax and top-k in plain torch, as a model's own routing function."""
    weights, ids = gating_output.float().softmax(-1).topk(topk)
    return weights, ids.to(torch.int32)


def moe_layer(
    weights: MoeWeights, device: str, shared: torch.nn.Module | None = None, **options: Any
) -> Any:
    """vLLM's layer with ``weights`` (on the CPU, as read from a checkpoint) on ``device``."""
    from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory
    from vllm.model_executor.layers.quantization import get_quantization_config

    config = get_quantization_config("fp8")(True, "dynamic", weight_block_size=[128, 128])
    experts, hidden, inner = weights.w2.shape
    with torch.device(device):
        layer = FusedMoEFactory(
            num_experts=experts,
            top_k=TOPK,
            hidden_size=hidden,
            intermediate_size=inner,
            params_dtype=BF16,
            quant_config=config,
            custom_routing_function=route,
            shared_experts=shared,
            prefix="experts",
            **options,
        )
    routed = layer.routed_experts
    _load(routed, weights)
    routed.quant_method.process_weights_after_loading(routed)
    return layer


def _load(routed: Any, weights: MoeWeights) -> None:
    """The parts of each expert through vLLM's own loader."""
    inner = weights.w2.shape[2]
    blocks = weights.w13_scale.shape[1] // 2
    for e in range(weights.w2.shape[0]):
        for part, source, rows in (
            ("weight", (weights.w13, weights.w2), inner),
            ("weight_scale_inv", (weights.w13_scale, weights.w2_scale), blocks),
        ):
            w13, w2 = (getattr(routed, f"{name}_{part}") for name in ("w13", "w2"))
            for param, shard, value in (
                (w13, "w1", source[0][e, :rows]),
                (w13, "w3", source[0][e, rows:]),
                (w2, "w2", source[1][e]),
            ):
                routed.weight_loader(param, value, f"experts.{e}.{shard}.{part}", shard, e)


def called(layer: Any, hidden: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The layer's output (the sum of both parts where it has shared experts)."""
    out = layer(hidden, logits)
    assert isinstance(out, torch.Tensor)
    return out

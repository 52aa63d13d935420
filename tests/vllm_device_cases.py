"""What gpu/test_vllm.py and test_vllm_musa.py run inside a process with vLLM and a device of the
kind that MATE_TEST_DEVICE names: vLLM's own layers on our kernels."""

from __future__ import annotations

import os
from typing import Any

import torch
from devices import captured
from layer_oracle import MoeWeights, dequantise, moe, quantise, round_groups
from vllm_layer import BF16, TOPK, called, moe_layer, route, vllm_process

E, H, I = 8, 512, 256  # noqa: E741
DEVICE = os.environ["MATE_TEST_DEVICE"]


def install() -> dict[str, Any]:
    """Load the plugin as vLLM does, which must not start CUDA up: the process may fork later."""
    from mate_plugin import report
    from mate_plugin.plugin import register_vllm

    register_vllm()
    assert not torch.cuda.is_initialized()
    return {hook.name: hook for hook in report.hooks()}


def calls() -> dict[str, str]:
    """The implementation that served each op of this process."""
    from mate_plugin.kernels import library

    return {row["op"]: row["impl"] for row in library.counters() if row["calls"]}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # The oracle rounds where the layer does; a code that falls the other way is one of many terms.
    error = (found.cpu().double() - expected).abs().max()
    assert error <= 2e-2 * expected.abs().max(), float(error / expected.abs().max())


def inputs(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, H, generator=chance).to(BF16)
    return hidden, torch.randn(count, E, generator=chance)


def default() -> None:
    """Nobody asked: vLLM keeps its own layers."""
    from vllm.model_executor.layers.quantization import get_quantization_config

    hooks = install()
    assert not any(hook.installed or hook.wanted for hook in hooks.values()), hooks
    assert get_quantization_config("fp8").__name__ == "Fp8Config"


def experts() -> None:
    """The whole layer against float64, and which kernels ran."""
    from mate_plugin import report

    assert install()["vllm.moe"].installed
    weights = MoeWeights(E, H, I)
    with vllm_process(DEVICE), torch.no_grad():
        layer = moe_layer(weights, DEVICE)
        method = layer.routed_experts.quant_method
        assert type(method).__name__ == "MateFp8MoEMethod"
        assert type(method.moe_kernel.fused_experts).__name__ == "MateExperts"
        for count in (1, 40, 300):
            hidden, logits = inputs(count, count)
            found = called(layer, hidden.to(DEVICE), logits.to(DEVICE))
            close(found, moe(weights, hidden, *route(hidden, logits, TOPK, True), fp8=True))
    served = calls()
    assert served["ragged_m_gemm"] in ("sm90a", "portable"), served
    (counted,) = report.layers()
    assert (counted.kind, counted.built, counted.calls) == ("moe", 1, 3)
    assert served["ragged_m_gemm"] in counted.how


def expert_map() -> None:
    """The first of two expert-parallel ranks adds what its experts give, and nothing else."""
    install()
    weights = MoeWeights(E, H, I)
    mine = torch.arange(E, dtype=torch.int32)
    mine[E // 2 :] = -1
    with vllm_process(DEVICE, expert_parallel=True), torch.no_grad():
        layer = moe_layer(weights, DEVICE, tp_size=2)
        assert layer.routed_experts.w13_weight.shape[0] == E // 2
        assert layer.routed_experts.expert_map.tolist() == mine.tolist()
        hidden, logits = inputs(60)
        found = called(layer, hidden.to(DEVICE), logits.to(DEVICE))
    close(found, moe(weights, hidden, *route(hidden, logits, TOPK, True), mine, fp8=True))


def graph_and_shared_experts() -> None:
    """Replays follow new tokens and routing, with shared experts beside on a stream of vLLM's."""
    install()
    weights = MoeWeights(E, H, I)
    with vllm_process(DEVICE), torch.no_grad():
        torch.manual_seed(1)
        shared = torch.nn.Linear(H, H, bias=False, dtype=BF16, device=DEVICE)
        layer = moe_layer(weights, DEVICE, shared=shared)
        hidden, logits = (x.to(DEVICE) for x in inputs(33))
        called(layer, hidden, logits)
        graph, out = captured(lambda: called(layer, hidden, logits), DEVICE)
        for seed in range(3):
            now = inputs(33, seed)
            for x, value in zip((hidden, logits), now, strict=True):
                x.copy_(value)
            if seed == 2:
                # All tokens choose the same experts.
                logits.copy_(logits[:1].expand_as(logits).clone())
            expected = called(layer, hidden, logits).clone()
            out.fill_(7)
            graph.replay()
            assert torch.equal(out, expected)
        chosen = route(hidden.cpu(), logits.cpu(), TOPK, True)
        exact = moe(weights, hidden.cpu(), *chosen, fp8=True)
        close(out, exact + hidden.cpu().double() @ shared.weight.cpu().double().T)


def compiled() -> None:
    """torch.compile passes the layer whole."""
    install()
    with vllm_process(DEVICE), torch.no_grad():
        layer = moe_layer(MoeWeights(E, H, I), DEVICE)
        given = [x.to(DEVICE) for x in inputs(20)]
        run = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(run(*given), called(layer, *given))


def linear() -> None:
    """vLLM chooses our kernel, which reads the checkpoint's own scales."""
    assert install()["vllm.linear"].installed
    torch.manual_seed(2)
    with vllm_process(DEVICE):
        block_linear((384, 512), powers=False)
        block_linear((200, 272), powers=True)
    assert "batched_gemm" in calls()


def block_linear(size: tuple[int, int], powers: bool) -> None:
    """One layer: eager, captured and compiled."""
    from vllm.model_executor.kernels.linear import init_fp8_linear_kernel
    from vllm_cases import linear_config

    config = linear_config()
    stored, scale = quantise(torch.randn(size))
    if powers:
        scale = scale.log2().ceil().exp2().to(torch.float8_e8m0fnu)
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(stored.to(DEVICE), requires_grad=False)
    layer.weight_scale_inv = torch.nn.Parameter(scale.to(DEVICE), requires_grad=False)
    x = torch.randn(50, size[1]).to(BF16)
    given = x.to(DEVICE)
    kernel = init_fp8_linear_kernel(
        config.activation_quant_key,
        config.weight_quant_key,
        input_dtype=BF16,
        out_dtype=BF16,
        weight_shape=size,
    )
    assert type(kernel).__name__ == "MateFp8BlockScaledMMKernel"
    kernel.process_weights_after_loading(layer)

    def run(x: torch.Tensor) -> torch.Tensor:
        return kernel.apply_weights(layer, x)

    found = run(given)
    close(found, round_groups(x) @ dequantise(stored, scale.float()).T)
    graph, out = captured(lambda: run(given), DEVICE)
    graph.replay()
    assert torch.equal(out, found)
    assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(given), found)

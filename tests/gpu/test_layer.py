"""The engine-free MoE layer on a GPU beside the same on a CPU."""

from __future__ import annotations

import pytest
import torch
from devices import seeded
from gpu_contract import require_gpu

from mate_plugin.layers.experts import Experts
from mate_plugin.layers.linear import BlockLinear
from mate_plugin.layers.plan import MODES

require_gpu()

E, H, I = 6, 512, 256  # noqa: E741
BF16 = torch.bfloat16
Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def layer_weights() -> Weights:
    g = seeded(1)

    def pair(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        scale = torch.rand(E, n // 128, k // 128, generator=g) / k**0.5
        return torch.randn(E, n, k, generator=g).to(torch.float8_e4m3fn), scale

    return *pair(2 * I, H), *pair(H, I)


def tokens(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = seeded(2)
    ids = torch.rand(count, E, generator=g).argsort(1)[:, :3]
    hidden = torch.randn(count, H, generator=g).to(BF16)
    return hidden, torch.rand(count, 3, generator=g), ids


def on_host(x: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(one.cpu() for one in x)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    # Rounding to FP8 turns a difference of one bf16 step into one of a sixteenth of a term.
    if want.numel():
        torch.testing.assert_close(got, want, rtol=3e-2, atol=3e-2 * float(want.abs().max()))


@pytest.mark.parametrize("count", [1, 70, 500])
@pytest.mark.parametrize("mode", ["auto", *MODES])
@pytest.mark.parametrize("activation", ["auto", "bf16"])
def test_agrees_with_the_cpu(count: int, mode: str, activation: str) -> None:
    weights, arguments = layer_weights(), tokens(count)
    layer = Experts(*weights, gemm_mode=mode, activation=activation)
    assert layer.plan.impl in ("sm90a", "portable")
    assert not layer.plan.fused
    assert layer.plan.activation == ("fp8" if activation == "auto" else activation)
    host = Experts(*on_host(weights), activation=layer.plan.activation)
    got, want = layer.apply(*arguments).cpu(), host.apply(*on_host(arguments))
    close(got, want)


@pytest.mark.parametrize("activation", ["auto", "bf16"])
def test_batched_rows_and_their_signal(activation: str) -> None:
    weights, g = layer_weights(), seeded(3)
    hidden = torch.randn(E, 200, H, generator=g).to(BF16)
    counts = torch.tensor([200, 0, 64, 1, 130, 7], dtype=torch.int32)
    signal = torch.zeros(E * 4, dtype=torch.int32)
    layer = Experts(*weights, activation=activation)
    out, same, block_m, threshold = layer.apply_batched(hidden, counts, signal=signal)
    assert same is signal
    blocks = -(-200 // block_m)
    for expert, count in enumerate(counts.tolist()):
        done = -(-count // block_m)
        rises = signal[expert * blocks : (expert + 1) * blocks].tolist()
        assert rises == [threshold] * done + [0] * (blocks - done)
    host = Experts(*on_host(weights), activation=layer.plan.activation)
    want = host.apply_batched(hidden.cpu(), counts.cpu())
    for expert, count in enumerate(counts.tolist()):
        close(out[expert, :count].cpu(), want[expert, :count])


def test_it_compiles_and_is_captured() -> None:
    layer, arguments = Experts(*layer_weights()), tokens(40)
    want = layer.apply(*arguments)
    compiled = torch.compile(layer.apply, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer.apply(*arguments)
    out.zero_()
    graph.replay()
    assert torch.equal(out, want)


@pytest.mark.parametrize("size", [(384, 512), (200, 272)])
def test_linear_layers_round_as_experts_do(size: tuple[int, int]) -> None:
    g = seeded(4)
    blocks = [-(-n // 128) for n in size]
    weight = torch.randn(*size, generator=g).to(torch.float8_e4m3fn)
    scale = torch.rand(*blocks, generator=g) / size[1] ** 0.5
    x = torch.randn(70, size[1], generator=g).to(BF16)
    layer, host = BlockLinear(weight, scale), BlockLinear(weight.cpu(), scale.cpu())
    assert (layer.activation, host.activation) == ("fp8", "bf16")
    want = BlockLinear(weight.cpu(), scale.cpu(), activation="fp8")(x.cpu())
    close(layer(x).cpu(), want)
    close(BlockLinear(weight, scale, activation="bf16")(x).cpu(), host(x.cpu()))

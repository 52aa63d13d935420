"""The engine-free block-FP8 linear layer against a float64 oracle."""

from __future__ import annotations

import pytest
import torch
from layer_oracle import dequantise, quantise, round_groups

from mate_plugin.kernels import packing
from mate_plugin.layers.linear import BlockLinear


def layer(n: int, k: int, activation: str = "auto"):
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n + k)) / k**0.5
    stored, scale = quantise(weight)
    return BlockLinear(stored, scale, activation=activation), dequantise(stored, scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(128, 128), (320, 200), (72, 456), (1, 130)])
@pytest.mark.parametrize("tokens", [0, 1, 3, 40])
def test_agrees_with_the_oracle(tokens, size, dtype):
    linear, exact = layer(*size)
    x = torch.randn(tokens, size[1]).to(dtype)
    out = linear(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), x.double() @ exact.T, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("size", [(128, 128), (320, 200)])
def test_fp8_activations_round_per_group(size):
    linear, exact = layer(*size, activation="fp8")
    x = torch.randn(9, size[1]).to(torch.bfloat16)
    torch.testing.assert_close(linear(x).double(), round_groups(x) @ exact.T, rtol=1e-2, atol=1e-2)


def test_fp8_rounds_where_the_oracle_does():
    x = torch.randn(64, 200).to(torch.bfloat16)
    for activation in ("bf16", "fp8"):
        linear, exact = layer(128, 200, activation)
        rounded, kept = round_groups(x) @ exact.T, x.double() @ exact.T
        alike, other = (rounded, kept) if activation == "fp8" else (kept, rounded)
        out = linear(x).double()
        assert (out - alike).abs().mean() < (out - other).abs().mean() / 8


@pytest.mark.parametrize("activation", ["bf16", "fp8"])
def test_leading_dimensions_bias_and_strided_rows(activation):
    linear, _ = layer(64, 136, activation)
    wide = torch.randn(2, 3, 200).to(torch.bfloat16)
    bias = torch.randn(64).to(torch.bfloat16)
    part = wide[..., :136]
    out = linear(part, bias)
    assert out.shape == (2, 3, 64)
    assert torch.equal(out, linear(part.contiguous()) + bias)
    flat = wide[0, :, :136]
    assert torch.equal(linear(flat), linear(flat.contiguous()))


@pytest.mark.parametrize("activation", ["bf16", "fp8"])
def test_packed_weights_are_the_same_layer(activation):
    linear, exact = layer(64, 136, activation)
    rows = linear.weight.clone()
    packed = BlockLinear(linear.weight, linear.scale, activation=activation, pack=True)
    kept = torch.equal(linear.weight.view(torch.uint8), rows.view(torch.uint8))
    assert kept != packing.wanted(rows.dtype)
    x = torch.randn(3, 2, 136).to(torch.bfloat16)
    seen = round_groups(x.view(6, 136)).view(3, 2, 136) if activation == "fp8" else x.double()
    torch.testing.assert_close(packed(x).double(), seen @ exact.T, rtol=1e-2, atol=1e-2)
    if not kept:
        with pytest.raises(TypeError, match=r"x: expected torch\.bfloat16 beside packed weights"):
            packed(x.half())


@pytest.mark.parametrize("pack", [False, True])
def test_compiles_without_a_break(pack):
    linear, _ = layer(64, 136)
    linear = BlockLinear(linear.weight, linear.scale, pack=pack)
    compiled = torch.compile(lambda x: linear(x * 2) + 1, fullgraph=True, dynamic=True)
    for tokens in (4, 7):
        x = torch.randn(tokens, 136).to(torch.bfloat16)
        assert torch.equal(compiled(x), linear(x * 2) + 1)


def test_refuses_what_does_not_fit():
    stored, scale = quantise(torch.randn(130, 260))
    with pytest.raises(ValueError, match=r"scale: expected \[2, 3\] .* got \[2, 2\]"):
        BlockLinear(stored, scale[:, :2])
    with pytest.raises(ValueError, match=r"weight: expected \[N, K\], got \[1, 130, 260\]"):
        BlockLinear(stored[None], scale)
    with pytest.raises(ValueError, match="activation: expected one of auto, bf16, fp8, got 'int8'"):
        BlockLinear(stored, scale, activation="int8")
    with pytest.raises(ValueError, match="block: expected one of 128x128"):
        BlockLinear(stored, scale, block=(1, 128))

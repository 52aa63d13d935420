"""The whole layer in one call: the bits of its steps one after the other, whatever the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mate_plugin.kernels import fused_moe, library
from mate_plugin.layers.experts import Experts

BF16, FP16 = torch.bfloat16, torch.float16


def blocks(*shape: int, step: int = 128) -> torch.Tensor:
    *batch, n, k = shape
    return torch.rand(*batch, -(-n // step), -(-k // step)) * 0.02 + 0.01


def fp8_weights(e: int, h: int, i: int, code: torch.dtype = torch.float8_e4m3fn):
    gate_up = torch.randn(e, 2 * i, h).to(code)
    scale = torch.cat([blocks(e, i, h), blocks(e, i, h)], 1)
    return gate_up, scale, torch.randn(e, h, i).to(code), blocks(e, h, i)


def wide_weights(e: int, h: int, i: int, dtype: torch.dtype):
    gate_up, down = torch.randn(e, 2 * i, h) * 0.1, torch.randn(e, h, i) * 0.1
    return gate_up.to(dtype), None, down.to(dtype), None


def tokens(t: int, h: int, e: int, topk: int, dtype: torch.dtype = BF16):
    ids = torch.stack([torch.randperm(e)[:topk] for _ in range(t)])
    return torch.randn(t, h).to(dtype), torch.rand(t, topk), ids


def in_steps(layer: Experts) -> Experts:
    """The same layer by permute, GEMMs, SwiGLU and unpermute."""
    other = Experts(*layer.weights, activation=layer.plan.activation)
    other.plan = replace(layer.plan, gemm_mode="psum_expert")
    assert layer.plan.fused
    assert not other.plan.fused
    return other


CASES = [
    # weights, activation, dtype of the tokens, experts, hidden, intermediate, tokens, topk
    ("e4m3", "bf16", BF16, 8, 512, 384, 17, 3),
    ("e4m3", "fp8", BF16, 8, 512, 384, 17, 3),
    ("e4m3", "bf16", FP16, 4, 256, 128, 40, 2),
    ("e4m3", "fp8", FP16, 4, 256, 128, 40, 2),
    ("e5m2", "bf16", BF16, 3, 200, 72, 33, 2),
    ("e4m3", "fp8", BF16, 3, 200, 200, 33, 2),
    ("e4m3", "bf16", BF16, 2, 128, 136, 700, 2),
    ("wide", "auto", BF16, 4, 264, 136, 21, 2),
    ("wide", "auto", FP16, 4, 264, 136, 21, 2),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(x) for x in case))
def test_the_bits_of_its_steps(case):
    kind, activation, dtype, e, h, i, t, topk = case
    torch.manual_seed(1)
    if kind == "wide":
        weights = wide_weights(e, h, i, dtype)
    else:
        code = torch.float8_e4m3fn if kind == "e4m3" else torch.float8_e5m2
        weights = fp8_weights(e, h, i, code)
    layer = Experts(*weights, activation=activation)
    hidden, probs, ids = tokens(t, h, e, topk, dtype)
    ids[t // 2, 0] = -1
    library.reset_counters()
    fused = layer.apply(hidden, probs, ids)
    assert {row["op"]: row["calls"] for row in library.counters()}["fused_experts"] == 1
    assert torch.isfinite(fused).all()
    assert torch.equal(fused, in_steps(layer).apply(hidden, probs, ids))


def test_more_tokens_than_one_pass_holds():
    torch.manual_seed(2)
    layer = Experts(*fp8_weights(3, 128, 128))
    hidden, probs, ids = tokens(9000, 128, 3, 2)
    assert torch.equal(layer.apply(hidden, probs, ids), in_steps(layer).apply(hidden, probs, ids))


@pytest.mark.parametrize("activation", ["bf16", "fp8"])
def test_a_token_does_not_depend_on_its_batch(activation):
    """From one row of an expert to hundreds, every way through the kernels gives the same bits."""
    torch.manual_seed(3)
    layer = Experts(*fp8_weights(2, 640, 256), activation=activation)
    hidden, probs, ids = tokens(600, 640, 2, 2)
    whole = layer.apply(hidden, probs, ids)
    for count in (1, 2, 3, 4, 5, 8, 9, 12, 13, 16, 17, 33, 129, 257):
        part = slice(600 - count, 600)
        assert torch.equal(layer.apply(hidden[part], probs[part], ids[part]), whole[part]), count


def test_nan_and_huge_tokens_stay_alone():
    torch.manual_seed(4)
    layer = Experts(*fp8_weights(2, 256, 128))
    hidden, probs, ids = tokens(30, 256, 2, 2)
    plain = layer.apply(hidden, probs, ids)
    spoilt = hidden.clone()
    spoilt[7, 3] = float("nan")
    spoilt[11] *= 1e30
    out = layer.apply(spoilt, probs, ids)
    rest = [t for t in range(30) if t not in (7, 11)]
    assert torch.isnan(out[7]).all()
    assert torch.equal(out[rest], plain[rest])


def test_wrong_arguments_are_named():
    weights = fp8_weights(2, 256, 128)
    hidden, probs, ids = tokens(3, 256, 2, 2)
    out = torch.full((3, 256), 7.0, dtype=BF16)

    def call(**wrong):
        given = {"hidden": hidden, "topk_ids": ids, "topk_weights": probs, "out": out} | wrong
        fused_moe.fused_experts(
            given["hidden"], None, given["topk_ids"], given["topk_weights"], *weights,
            given["out"], dtype=BF16,
        )  # fmt: skip

    with pytest.raises(ValueError, match="hidden"):
        call(hidden=hidden[:, :128], out=out[:, :128])
    with pytest.raises(TypeError, match="hidden"):
        call(hidden=hidden.float())
    with pytest.raises(TypeError, match="topk_ids"):
        call(topk_ids=ids.float())
    with pytest.raises(ValueError, match="topk_weights"):
        call(topk_weights=probs[:, :1])
    with pytest.raises(ValueError, match="out"):
        call(out=out[:2])
    assert (out == 7.0).all()

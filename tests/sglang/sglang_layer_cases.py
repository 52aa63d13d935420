"""What test_layers.py runs inside a process with SGLang: its own layers with our methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_oracle import MoeWeights, dequantise, moe, quantise
from sglang_layers import bare, fp8_config, fused_moe, load_linear, publish
from sglang_moe_cases import KINDS, TOPK, E, H, T, check, routed

BF16 = torch.bfloat16
# SGLang loads FP8 experts only where gate and up are whole blocks.
WHOLE = MoeWeights(E, H, 256)


def mate_config(**changes: Any) -> Any:
    """The config that SGLang finds for "fp8" on the platform mate_cpu."""
    from sglang.srt.layers.quantization import get_quantization_config

    found = get_quantization_config("fp8")
    assert found.__name__ == "MateFp8Config"
    return fp8_config(found, **changes)


def fused_moe_layers() -> None:
    """FP8 blocks and 16 bits, loaded and run by SGLang's FusedMoE."""
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    publish()
    hidden, probs, ids = routed()
    for weights, config in ((WHOLE, mate_config()), (KINDS["bf16"], None)):
        layer = fused_moe(weights, config, TOPK)
        assert layer.runner_backend.value == "mate"
        found = layer(hidden, StandardTopKOutput(probs, ids, None))
        check(found, moe(weights, hidden, probs, ids))
        assert layer.runner.runner_core.plan.weight_bits == (8 if config else 16)


def skipped_experts() -> None:
    """Experts that the checkpoint keeps in 16 bits run on our runner too."""
    from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod

    publish()
    config = mate_config(ignored_layers=["model.layers.0.mlp.experts"])
    layer = fused_moe(KINDS["bf16"], config, TOPK)
    assert type(layer.quant_method) is UnquantizedFusedMoEMethod
    assert layer.runner_backend.value == "mate"


def other_runner() -> None:
    """Whoever names another runner gets SGLang's methods, which compute as before."""
    from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
    from sglang.srt.layers.moe.topk import StandardTopKOutput
    from sglang.srt.layers.quantization.fp8 import Fp8MoEMethod

    publish("triton")
    made = fused_moe(KINDS["bf16"], None, TOPK)
    assert made.runner_backend.value == "triton"
    hidden, probs, _ = routed()
    ids = torch.stack([torch.randperm(E)[:TOPK] for _ in range(T)])
    found = made(hidden, StandardTopKOutput(probs, ids, None))
    check(found, moe(KINDS["bf16"], hidden, probs, ids))
    assert type(mate_config().get_quant_method(bare(FusedMoE), "experts")) is Fp8MoEMethod


def biased_experts() -> None:
    from sglang.srt.layers.moe.fused_moe_triton import FusedMoE

    publish()
    sizes = {"num_experts": 4, "hidden_size": 64, "intermediate_size": 64, "top_k": 2}
    with pytest.raises(ValueError, match="with_bias: the MoE runner mate serves experts without"):
        FusedMoE(**sizes, layer_id=0, with_bias=True, params_dtype=BF16)


def linear() -> None:
    """Partial blocks in both dimensions, merged columns and a bias, by SGLang's loaders."""
    from sglang.srt.layers import linear as layers
    from sglang.srt.layers.linear import MergedColumnParallelLinear, ReplicatedLinear

    publish()
    assert layers.WEIGHT_LOADER_V2_SUPPORTED.count("MateFp8LinearMethod") == 1
    parts = [quantise(torch.randn(n, 136)) for n in (128, 72)]
    exact = [dequantise(*part) for part in parts]
    x = torch.randn(2, 3, 136).to(BF16)
    config = {"quant_config": mate_config(), "params_dtype": BF16}

    plain = ReplicatedLinear(136, 72, bias=True, prefix="plain", **config)
    assert type(plain.quant_method).__name__ == "MateFp8LinearMethod"
    load_linear(plain, parts[1])
    plain.bias.data.normal_()
    found, left = plain(x)
    assert left is None
    close = {"rtol": 1e-2, "atol": 0.1}
    expected = x.double() @ exact[1].T + plain.bias.double()
    torch.testing.assert_close(found.double(), expected, **close)

    merged = [parts[0], quantise(torch.randn(256, 136))]
    both = MergedColumnParallelLinear(136, [128, 256], bias=False, prefix="both", **config)
    load_linear(both, *merged)
    expected = x.double() @ torch.cat([dequantise(*part) for part in merged]).T
    torch.testing.assert_close(both(x)[0].double(), expected, **close)


def skipped_linear() -> None:
    """Layers that the checkpoint keeps in 16 bits stay SGLang's."""
    from sglang.srt.layers.linear import ReplicatedLinear
    from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod

    publish()
    config = mate_config(ignored_layers=["head"])
    layer = ReplicatedLinear(64, 32, bias=False, quant_config=config, prefix="head")
    assert type(layer.quant_method) is UnquantizedLinearMethod


def refused_linear() -> None:
    from sglang.srt.layers.linear import ReplicatedLinear

    publish()
    cannot = "^mate-plugin cannot serve these FP8 linear layers: "
    for config, reason in (
        (mate_config(block=[64, 128]), r"expected blocks of \(128, 128\), got \(64, 128\)"),
        (mate_config(weight_block_size=None), "the weights are not quantised in FP8 blocks"),
    ):
        with pytest.raises(ValueError, match=cannot + reason):
            ReplicatedLinear(128, 128, bias=False, quant_config=config, prefix="x")
    layer = ReplicatedLinear(136, 72, bias=False, quant_config=mate_config(), prefix="x")
    load_linear(layer, quantise(torch.randn(72, 136)))
    rows = torch.zeros(2, 136, dtype=BF16)
    with pytest.raises(TypeError, match="x: expected a tensor of 16-bit activations, got tuple"):
        layer.quant_method.apply(layer, (rows, rows))
    layer.weight_scale_inv.data = layer.weight_scale_inv.data.double()
    with pytest.raises(ValueError, match="weight_scale_inv: expected float32 in rows, got torch"):
        layer.quant_method.process_weights_after_loading(layer)


def linear_off() -> None:
    """Without our linear layers SGLang's own method stays, and MoE layers are still ours."""
    from sglang.srt.layers.linear import ReplicatedLinear
    from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod

    publish()
    config = mate_config()
    assert type(config.get_quant_method(bare(ReplicatedLinear), "x")) is Fp8LinearMethod
    assert fused_moe(WHOLE, config, TOPK).runner_backend.value == "mate"

"""What test_layers_vllm.py runs inside a process with vLLM: its experts and linear classes."""

from __future__ import annotations

import functools
import inspect
from types import SimpleNamespace

import pytest
import torch
from layer_oracle import MoeWeights, dequantise, moe, quantise

E, H, I = 4, 136, 72  # noqa: E741


def moe_config(**changes) -> SimpleNamespace:
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    config = {
        "is_act_and_mul": True,
        "activation": MoEActivation.SILU,
        "moe_parallel_config": SimpleNamespace(use_batched_activation_format=False),
        "has_hash_routing": False,
        "routing_method": None,
        "router_logits_dtype": None,
        "hidden_dim": H,
        "is_lora_enabled": False,
        "has_bias": False,
        "in_dtype": torch.bfloat16,
        "swiglu_limit": None,
        "swiglu_alpha": None,
        "swiglu_beta": None,
        "activation_situ_beta": None,
        "activation_situ_linear_beta": None,
    }
    return SimpleNamespace(**config | changes)


def build(cls, weights: MoeWeights, limit: float | None = None, **room):
    from vllm.model_executor.layers.fused_moe.config import fp8_w8a16_moe_quant_config

    quant = fp8_w8a16_moe_quant_config(
        w1_scale=weights.w13_scale,
        w2_scale=weights.w2_scale,
        block_shape=[128, 128],
        gemm1_clamp_limit=limit,
    )
    experts = cls(moe_config(), quant, **room)
    experts.build(weights.w13, weights.w2)
    assert experts.expects_unquantized_inputs
    return experts


def apply(experts, weights: MoeWeights, hidden, output, **changes) -> None:
    arguments = {
        "topk_weights": None,
        "topk_ids": None,
        "activation": moe_config().activation,
        "global_num_experts": E,
        "expert_map": None,
        "a1q_scale": None,
        "a2_scale": None,
        "workspace13": None,
        "workspace2": None,
        "expert_tokens_meta": None,
        "apply_router_weight_on_input": False,
    }
    experts.apply(
        output=output, hidden_states=hidden, w1=weights.w13, w2=weights.w2, **arguments | changes
    )


def standard() -> None:
    from mate_plugin.layers.vllm_moe import experts_classes

    weights = MoeWeights(E, H, I)
    for limit in (None, 0.5):
        experts = build(experts_classes()[0], weights, limit)
        shapes = experts.workspace_shapes(9, 2 * I, H, 2, E, E, None, None)
        assert shapes == ((0,), (0,), (9, H))
        hidden = torch.randn(9, H).to(torch.bfloat16)
        probs = torch.rand(9, 2)
        ids = torch.randint(0, 7, (9, 2), dtype=torch.int32)
        expert_map = torch.tensor([2, -1, 0, 3, -1, 1, -1], dtype=torch.int32)
        output = torch.empty_like(hidden)
        routed = {"topk_weights": probs, "topk_ids": ids, "expert_map": expert_map}
        apply(experts, weights, hidden, output, **routed)
        expected = moe(weights, hidden, probs, ids, expert_map, limit=limit)
        torch.testing.assert_close(output.double(), expected, rtol=2e-2, atol=2e-2)
        # vLLM has weighted the input itself by then, so that the output is a plain sum.
        apply(experts, weights, hidden, output, **routed, apply_router_weight_on_input=True)
        expected = moe(weights, hidden, None, ids, expert_map, limit=limit)
        torch.testing.assert_close(output.double(), expected, rtol=2e-2, atol=2e-2)


def batched() -> None:
    from mate_plugin.layers.vllm_moe import experts_classes

    weights = MoeWeights(E, H, I)
    experts = build(experts_classes()[1], weights, max_num_tokens=3, num_dispatchers=2)
    shapes = experts.workspace_shapes(6, 2 * I, H, 2, E, E, None, None)
    assert shapes == ((0,), (0,), (E, 6, H))
    counts = torch.tensor([6, 0, 2, 5], dtype=torch.int32)
    hidden = torch.randn(E, 6, H).to(torch.bfloat16)
    output = torch.zeros_like(hidden)
    meta = SimpleNamespace(expert_num_tokens=counts)
    apply(experts, weights, hidden, output, expert_tokens_meta=meta)
    for e, count in enumerate(counts.tolist()):
        expected = weights.expert(e, hidden[e, :count])
        torch.testing.assert_close(output[e, :count].double(), expected, rtol=2e-2, atol=2e-2)
        assert not output[e, count:].any()


def packed() -> None:
    """Weights are packed after they were loaded, where the kernels and the setting want it."""
    from mate_plugin.config import settings
    from mate_plugin.kernels import packing
    from mate_plugin.layers.vllm_moe import experts_classes

    weights = MoeWeights(E, H + 8, I + 8)
    rows = weights.w13.clone()
    hidden, probs = torch.randn(9, H + 8).to(torch.bfloat16), torch.rand(9, 2)
    ids = torch.randint(0, E, (9, 2), dtype=torch.int32)
    expected = moe(weights, hidden, probs, ids, None)
    experts = build(experts_classes()[0], weights)
    assert torch.equal(weights.w13.view(torch.uint8), rows.view(torch.uint8))
    experts.pack(weights.w13, weights.w2)
    wanted = settings().pack_weights and packing.wanted(weights.w13.dtype)
    assert ("packed weights" in experts.plan.describe()) == wanted
    assert torch.equal(weights.w13.view(torch.uint8), rows.view(torch.uint8)) != wanted
    assert weights.w13.shape == rows.shape
    output = torch.empty_like(hidden)
    apply(experts, weights, hidden, output, topk_weights=probs, topk_ids=ids)
    torch.testing.assert_close(output.double(), expected, rtol=2e-2, atol=2e-2)
    # As vLLM builds a layer anew around weights that it took over as they are.
    again = build(experts_classes()[0], weights)
    apply(again, weights, hidden, output, topk_weights=probs, topk_ids=ids)
    torch.testing.assert_close(output.double(), expected, rtol=2e-2, atol=2e-2)


def reasons() -> None:
    """Each thing that is not supported is refused with a reason that names it."""
    import vllm.model_executor.layers.fused_moe.modular_kernel as mk
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.quantization.utils.quant_utils import (
        GroupShape,
        create_fp8_quant_key,
        kFp8Dynamic128Sym,
        kFp8Static128BlockSym,
        kFp8StaticTensorSym,
    )

    from mate_plugin.layers.vllm_moe import experts_classes

    standard_format, batched_format = mk.FusedMoEActivationFormat
    if standard_format != mk.FusedMoEActivationFormat.Standard:
        standard_format, batched_format = batched_format, standard_format
    standard_cls, batched_cls = experts_classes()

    def ask(cls=standard_cls, weight=kFp8Static128BlockSym, form=standard_format, **changes):
        return cls.is_supported_config(cls, moe_config(**changes), weight, kFp8Dynamic128Sym, form)

    assert ask() == (True, None)
    assert ask(batched_cls, form=batched_format) == (True, None)
    small = create_fp8_quant_key(static=True, group_shape=GroupShape(32, 32))
    for answer, word in (
        (ask(form=batched_format), "activation format"),
        (ask(batched_cls), "activation format"),
        (ask(weight=kFp8StaticTensorSym), "quantization scheme"),
        (ask(weight=small), "quantization scheme"),
        (ask(activation=MoEActivation.GELU), "activation"),
        (ask(is_act_and_mul=False), "no act_and_mul"),
        (ask(has_bias=True), "expert biases"),
        (ask(in_dtype=torch.float32), "float32 activations"),
        (ask(is_lora_enabled=True), "LoRA"),
    ):
        supported, reason = answer
        assert not supported
        assert word in reason, reason


@functools.cache
def bare_config():
    from vllm.config import VllmConfig

    return VllmConfig()


def quant_method(inner: int, tp_size: int, ep_size: int = 1, moe_backend="auto", **parallel):
    """What our config gives for experts of this intermediate size, split so over processes."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.fused_moe import RoutedExperts
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig

    from mate_plugin.layers.vllm_fp8 import config_class

    parts = dict.fromkeys(inspect.signature(FusedMoEParallelConfig).parameters, 0)
    parts |= {"tp_size": tp_size, "ep_size": ep_size, "use_ep": ep_size > 1}
    parts |= {"dp_size": 1, "pcp_size": 1, "sp_size": 1} | parallel
    arguments = vars(moe_config()) | {
        "num_experts": E,
        "num_logical_experts": E,
        "num_local_experts": E // ep_size,
        "experts_per_token": 2,
        "hidden_dim": 256,
        "intermediate_size": inner,
        "device": "cpu",
        "routing_method": 0,
        "moe_backend": moe_backend,
        "moe_parallel_config": FusedMoEParallelConfig(**parts),
    }
    known = inspect.signature(FusedMoEConfig).parameters
    layer = RoutedExperts.__new__(RoutedExperts)
    torch.nn.Module.__init__(layer)
    layer.layer_name = "experts"
    layer.moe_config = FusedMoEConfig(**{k: v for k, v in arguments.items() if k in known})
    config = config_class()(True, "dynamic", weight_block_size=[128, 128])
    with set_current_vllm_config(bare_config()):
        return config.get_quant_method(layer, layer.layer_name)


def shards() -> None:
    """Experts split into parts of blocks are refused; whole blocks and whole experts are taken."""
    from mate_plugin.layers.vllm_moe import experts_classes

    for sizes in ((256, 2), (192, 1), (192, 1, 2)):
        taken = quant_method(*sizes)
        assert taken.experts_cls is experts_classes()[0], sizes
        assert list(taken.moe_block_shape) == [128, 128], sizes
    # vLLM refines the grid of scales to 32 for the first, and has no grid for the second.
    expected = "expected an intermediate size per process in whole blocks of 128x128, got"
    for inner in (192, 144):
        with pytest.raises(ValueError, match=f"{expected} {inner // 2} of {inner}"):
            quant_method(inner, 2)


def linear_config(block=(128, 128), **changes):
    from vllm.model_executor.kernels.linear.scaled_mm import FP8ScaledMMLinearLayerConfig
    from vllm.model_executor.layers.quantization.utils.quant_utils import (
        GroupShape,
        create_fp8_quant_key,
    )

    arguments = {
        "weight_quant_key": create_fp8_quant_key(static=True, group_shape=GroupShape(*block)),
        "activation_quant_key": create_fp8_quant_key(static=False, group_shape=GroupShape(1, 128)),
        "input_dtype": torch.bfloat16,
        "out_dtype": torch.bfloat16,
        "weight_shape": (200, 136),
    }
    return FP8ScaledMMLinearLayerConfig(**arguments | changes)


def linear_layer(weight, scale, dtype=torch.bfloat16):
    """A bare layer with these weights, and our kernel for it."""
    from vllm.config import VllmConfig, set_current_vllm_config

    from mate_plugin.layers.vllm_linear import kernel_class

    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.weight_scale_inv = torch.nn.Parameter(scale, requires_grad=False)
    with set_current_vllm_config(VllmConfig()):
        return layer, kernel_class()(linear_config(input_dtype=dtype, out_dtype=dtype))


def linear() -> None:
    from mate_plugin.layers.vllm_linear import kernel_class

    cls = kernel_class()
    assert cls.is_supported() == (True, None)
    assert cls.can_implement(linear_config()) == (True, None)
    for wrong, word in (
        (linear_config(block=(64, 128)), "weight blocks"),
        (linear_config(out_dtype=torch.float32), "out_dtype"),
        (linear_config(input_dtype=torch.float32), "input_dtype"),
    ):
        supported, reason = cls.can_implement(wrong)
        assert not supported
        assert word in reason, reason
    stored, scale = quantise(torch.randn(200, 136))
    layer, kernel = linear_layer(stored, scale.t().contiguous().t())
    kernel.process_weights_after_loading(layer)
    assert layer.weight_scale_inv.is_contiguous()
    x, bias = torch.randn(2, 3, 136).to(torch.bfloat16), torch.randn(200).to(torch.bfloat16)
    out = kernel.apply_weights(layer, x, bias)
    expected = x.double() @ dequantise(stored, scale).T + bias.double()
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=0.1)


def packed_linear() -> None:
    """Packed where the kernels, the setting and the dtype want it; never what MLA reads itself."""
    from mate_plugin.config import settings
    from mate_plugin.kernels import packing

    stored, scale = quantise(torch.randn(208, 136))
    exact = dequantise(stored, scale)
    wanted = settings().pack_weights and packing.wanted(stored.dtype)
    for prefix, dtype in (
        ("layers.0.o_proj", torch.bfloat16),
        ("layers.0.o_proj", torch.float16),
        ("layers.0.kv_b_proj", torch.bfloat16),
    ):
        packs = wanted and dtype == torch.bfloat16 and prefix.endswith("o_proj")
        layer, kernel = linear_layer(stored.clone(), scale, dtype)
        layer.prefix = prefix
        kernel.process_weights_after_loading(layer)
        kept = torch.equal(layer.weight.view(torch.uint8), stored.view(torch.uint8))
        assert kept != packs, (prefix, dtype)
        assert layer.weight.shape == stored.shape
        # And where a process takes over what another one had made ready.
        _, fresh = linear_layer(layer.weight, scale, dtype)
        x = torch.randn(5, 136).to(dtype)
        for one in (kernel, fresh):
            out = one.apply_weights(layer, x)
            torch.testing.assert_close(out.double(), x.double() @ exact.T, rtol=1e-2, atol=0.1)

"""Shapes and tensor names of the model families that the demonstration can write."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mate_plugin.demo.tokenizer import BOS, EOS

# Tokens of the longest sequence, unless the config says otherwise.
MAX_LENGTH = 2048


@dataclass(frozen=True)
class Matrix:
    """One weight ``[n, k]``; ``quantised`` ones become FP8 blocks with scales."""

    name: str
    n: int
    k: int
    quantised: bool = True
    gain: float = 1.0


@dataclass(frozen=True)
class Ones:
    """A weight of a norm, ``[n]`` of ones."""

    name: str
    n: int


@dataclass(frozen=True)
class Zeros:
    """A float32 bias ``[n]`` of zeros."""

    name: str
    n: int


Tensor = Matrix | Ones | Zeros

# hidden_size is no multiple of 128 anywhere, so that K of most weights and N of the
# down-projections end in a partial block. vLLM wants whole blocks in merged weights.
DEEPSEEK_V3: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 320,
        "intermediate_size": 512,
        "moe_intermediate_size": 128,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "q_lora_rank": 128,
    },
    "small": {
        "hidden_size": 1216,
        "intermediate_size": 2560,
        "moe_intermediate_size": 512,
        "n_routed_experts": 32,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "q_lora_rank": 384,
    },
}
# The hidden size is made of whole blocks: vLLM dequantises the indexer's wk and takes no others.
# index_topk is below the length of usual prompts, so that something is left to select.
DEEPSEEK_V32: dict[str, dict[str, Any]] = {
    "tiny": DEEPSEEK_V3["tiny"] | {"hidden_size": 384, "index_topk": 64, "index_n_heads": 8},
    "small": DEEPSEEK_V3["small"] | {"hidden_size": 1280, "index_topk": 128, "index_n_heads": 16},
}
QWEN3_MOE: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 320,
        "moe_intermediate_size": 128,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    "small": {
        "hidden_size": 1216,
        "moe_intermediate_size": 384,
        "num_experts": 32,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
}

_COMMON: dict[str, Any] = {
    "vocab_size": 512,
    "max_position_embeddings": MAX_LENGTH,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "norm_topk_prob": True,
    "use_cache": True,
    "initializer_range": 0.02,
}
_DEEPSEEK: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 0,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "ep_size": 1,
    "rope_scaling": {
        "type": "yarn",
        "rope_type": "yarn",
        "factor": 4,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
_ARCHITECTURE: dict[str, dict[str, Any]] = {
    "deepseek-v3": _DEEPSEEK,
    "deepseek-v3.2": _DEEPSEEK
    | {
        "architectures": ["DeepseekV32ForCausalLM"],
        "model_type": "deepseek_v32",
        "index_head_dim": 128,
    },
    "qwen3-moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "intermediate_size": 512,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "use_sliding_window": False,
        "sliding_window": None,
    },
}
# How strongly the head draws each syllable to its successor: DeepSeek's routed experts, scaled by
# 2.5, leave the token itself a smaller share of the residual, so that it takes more.
SUCCESSOR_PULL = {"deepseek_v3": 8.0, "deepseek_v32": 8.0, "qwen3_moe": 4.5}
_SIZES = {"deepseek-v3": DEEPSEEK_V3, "deepseek-v3.2": DEEPSEEK_V32, "qwen3-moe": QWEN3_MOE}
FAMILIES = tuple(_SIZES)


def model_config(
    family: str, size: str, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """config.json of an unquantised model, with ``overrides`` in place of its entries.

    YaRN's original length follows ``max_position_embeddings`` unless ``rope_scaling`` is overridden
    itself. Raises ValueError for an unknown family or size.
    """
    if family not in _SIZES:
        raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, found {family!r}")
    if size not in _SIZES[family]:
        raise ValueError(f"size: expected one of {', '.join(_SIZES[family])}, found {size!r}")
    config = _COMMON | _ARCHITECTURE[family] | _SIZES[family][size] | dict(overrides or {})
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    if is_deepseek(config) and "rope_scaling" not in (overrides or {}):
        scaling = config["rope_scaling"]
        original = math.ceil(config["max_position_embeddings"] / scaling["factor"])
        config["rope_scaling"] = scaling | {"original_max_position_embeddings": original}
    return config


def is_deepseek(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of an MLA model: DeepSeek's, with or without an indexer."""
    return str(config["model_type"]).startswith("deepseek")


def unquantised_modules(config: dict[str, Any]) -> list[str]:
    """Modules an FP8 checkpoint must list, or the engine would read their 16-bit weights as FP8."""
    if config["model_type"] != "qwen3_moe":
        return []
    gates = [f"model.layers.{i}.mlp.gate" for i in range(config["num_hidden_layers"])]
    return ["lm_head", *gates]


def layer_tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """Every tensor of the layers and the last norm, in the order in which they are drawn."""
    deepseek = is_deepseek(config)
    hidden = config["hidden_size"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        yield Ones(at + "input_layernorm.weight", hidden)
        yield from _mla(config, at) if deepseek else _attention(config, at)
        if "index_topk" in config:
            yield from _indexer(config, at)
        yield Ones(at + "post_attention_layernorm.weight", hidden)
        if deepseek and layer < config["first_k_dense_replace"]:
            yield from _gated(at + "mlp.", hidden, config["intermediate_size"])
        else:
            yield from _moe(config, at + "mlp.", deepseek)
    yield Ones("model.norm.weight", hidden)


def _attention(c: dict[str, Any], at: str) -> Iterator[Tensor]:
    hidden, dim = c["hidden_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    at += "self_attn."
    yield Matrix(at + "q_proj.weight", q, hidden)
    yield Matrix(at + "k_proj.weight", kv, hidden)
    yield Matrix(at + "v_proj.weight", kv, hidden)
    yield Matrix(at + "o_proj.weight", hidden, q)
    yield Ones(at + "q_norm.weight", dim)
    yield Ones(at + "k_norm.weight", dim)


def _mla(c: dict[str, Any], at: str) -> Iterator[Tensor]:
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    at += "self_attn."
    yield Matrix(at + "q_a_proj.weight", c["q_lora_rank"], hidden)
    yield Ones(at + "q_a_layernorm.weight", c["q_lora_rank"])
    yield Matrix(at + "q_b_proj.weight", heads * (nope + rope), c["q_lora_rank"])
    yield Matrix(at + "kv_a_proj_with_mqa.weight", c["kv_lora_rank"] + rope, hidden)
    yield Ones(at + "kv_a_layernorm.weight", c["kv_lora_rank"])
    yield Matrix(at + "kv_b_proj.weight", heads * (nope + value), c["kv_lora_rank"])
    yield Matrix(at + "o_proj.weight", hidden, heads * value)


def _indexer(c: dict[str, Any], at: str) -> Iterator[Tensor]:
    hidden, heads, dim = c["hidden_size"], c["index_n_heads"], c["index_head_dim"]
    at += "self_attn.indexer."
    yield Matrix(at + "wq_b.weight", heads * dim, c["q_lora_rank"])
    yield Matrix(at + "wk.weight", dim, hidden)
    yield Ones(at + "k_norm.weight", dim)
    yield Zeros(at + "k_norm.bias", dim)
    yield Matrix(at + "weights_proj.weight", heads, hidden, quantised=False)


def _moe(c: dict[str, Any], at: str, deepseek: bool) -> Iterator[Tensor]:
    hidden, inner = c["hidden_size"], c["moe_intermediate_size"]
    experts = c["n_routed_experts"] if deepseek else c["num_experts"]
    yield Matrix(at + "gate.weight", experts, hidden, quantised=False, gain=2.0)
    if deepseek:
        yield Zeros(at + "gate.e_score_correction_bias", experts)
        yield from _gated(at + "shared_experts.", hidden, inner * c["n_shared_experts"])
    for expert in range(experts):
        yield from _gated(f"{at}experts.{expert}.", hidden, inner)


def _gated(at: str, hidden: int, inner: int) -> Iterator[Tensor]:
    yield Matrix(at + "gate_proj.weight", inner, hidden)
    yield Matrix(at + "up_proj.weight", inner, hidden)
    # The product of gate and up is small; this keeps the layer's share of the residual.
    yield Matrix(at + "down_proj.weight", hidden, inner, gain=2.0)

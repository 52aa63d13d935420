"""Checkpoints that tell right from wrong: FP8 ones, and twins in bf16 with the same exact weights.

Random models amplify the last bit: a router's near-tie swaps experts and moves every logit. The
weights that lead back into the residual are therefore scaled down by powers of two, and DeepSeek's
router gets biases that set its experts apart (its bf16 scores would often be equal otherwise).
The norm of an indexer's keys gets weights and a bias, which a model that left them out would miss.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mate_plugin.demo.checkpoint import write_checkpoint

# Sizes where N and K of the experts' matrices end in partial blocks.
OVERRIDES: dict[str, dict[str, Any]] = {
    "deepseek-v3": {},
    "deepseek-v3.2": {},
    "qwen3-moe": {"moe_intermediate_size": 192},
}
# Sizes of which half is made of whole blocks, for two processes.
HALVES: dict[str, dict[str, int]] = {
    "deepseek-v3": {"moe_intermediate_size": 256},
    "deepseek-v3.2": {"moe_intermediate_size": 256},
    "qwen3-moe": {"moe_intermediate_size": 256, "head_dim": 128},
}
# Factors of o_proj and of the down-projections. V3.2's experts are calmer and further apart: the
# noise of swapped ones is to stay below what a wrong selection does to the logits.
CALM = {"deepseek-v3": (0.125, 0.125), "deepseek-v3.2": (0.125, 0.03125), "qwen3-moe": (0.5, 0.5)}
BIAS_SPREAD = {"deepseek-v3": 0.5, "deepseek-v3.2": 2.0, "qwen3-moe": 0.0}
K_NORM_SPREAD = 0.5
# What tensor parallelism divides; the rest of a layer is the same in each process.
SPLIT = ("intermediate_size", "moe_intermediate_size", "num_attention_heads", "num_key_value_heads")


def write_twins(
    root: Path, family: str, overrides: Mapping[str, Any] | None = None
) -> dict[str, Path]:
    """Folders by "fp8" and "bf16"; scales are powers of two, so that bf16 holds exact products.

    The twin of a DeepSeek-V3.2 is a DeepSeek-V3, which attends to every token: the same model as
    long as no sequence is longer than index_topk.
    """
    folders = {}
    changes = OVERRIDES[family] | dict(overrides or {})
    for quant in ("fp8", "bf16"):
        folder = root / f"{family}-{quant}"
        write_checkpoint(folder, family, quant, pow2_scales=True, overrides=changes)
        path = folder / "model.safetensors"
        weights = _calmed(load_file(path), family)
        if quant == "bf16" and family == "deepseek-v3.2":
            weights = _dense(folder, weights)
        save_file(weights, path, metadata={"format": "pt"})
        folders[quant] = folder
    return folders


def vary_scales(folder: Path) -> None:
    """Exchange the scales of an FP8 checkpoint for ones that differ from block to block.

    Random weights have nearly the same in each, so that a block with another's is not noticed.
    """
    chance = torch.Generator().manual_seed(3)
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name in sorted(weights):
        if name.endswith("_scale_inv"):
            octaves = 2 * torch.rand(weights[name].shape, generator=chance) - 1
            weights[name] = weights[name] * octaves.exp2()
    save_file(weights, path, metadata={"format": "pt"})


def _dense(folder: Path, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights without those of the indexer; config.json becomes that of a DeepSeek-V3."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"}
    kept = {key: value for key, value in config.items() if not key.startswith("index_")}
    path.write_text(json.dumps(kept, indent=2))
    return {name: tensor for name, tensor in weights.items() if ".indexer." not in name}


def _calmed(weights: dict[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(1)
    factors = dict(zip(("o_proj", "down_proj"), CALM[family], strict=True))
    for name in sorted(weights):
        if name.endswith("e_score_correction_bias"):
            shape = weights[name].shape
            weights[name] = torch.randn(shape, generator=chance) * BIAS_SPREAD[family]
        if ".indexer.k_norm." in name:
            drawn = torch.randn(weights[name].shape, generator=chance) * K_NORM_SPREAD
            weights[name] = (weights[name] + drawn).to(weights[name].dtype)
        # FP8 weights are scaled through their scales, and stay as they are themselves.
        for leads_back, factor in factors.items():
            scales = name.endswith("_scale_inv") or name + "_scale_inv" not in weights
            if leads_back in name and scales:
                weights[name] = weights[name] * factor
    return weights


def served_config(folder: Path, processes: int = 1) -> dict[str, Any]:
    """config.json as each of ``processes`` tensor-parallel ones sees it, with its share of heads
    and of what is between gate and down."""
    config = json.loads((folder / "config.json").read_text())
    return config | {name: config[name] // processes for name in SPLIT if name in config}


def expected_layers(c: dict[str, Any]) -> dict[tuple[str, str], int]:
    """How many FP8 layers of each kind and shape a process builds that sees the config ``c``."""
    hidden, layers = c["hidden_size"], c["num_hidden_layers"]
    found: dict[tuple[str, str], int] = {}

    def add(kind: str, shape: str, count: int) -> None:
        found[kind, shape] = found.get((kind, shape), 0) + count

    if c["model_type"] == "qwen3_moe":
        q, kv = (c[n] * c["head_dim"] for n in ("num_attention_heads", "num_key_value_heads"))
        add("linear", f"{q + 2 * kv}x{hidden}", layers)
        add("linear", f"{hidden}x{q}", layers)
        add("moe", f"{c['num_experts']}x{hidden}x{c['moe_intermediate_size']}", layers)
        return found
    heads, dense = c["num_attention_heads"], c["first_k_dense_replace"]
    low = c["q_lora_rank"] + c["kv_lora_rank"] + c["qk_rope_head_dim"]
    query = heads * (c["qk_nope_head_dim"] + c["qk_rope_head_dim"])
    shared = c["moe_intermediate_size"] * c["n_shared_experts"]
    add("linear", f"{low}x{hidden}", layers)
    add("linear", f"{query}x{c['q_lora_rank']}", layers)
    add("linear", kv_b_shape(c), layers)
    if "index_topk" in c:
        # wk and weights_proj are one bf16 layer.
        add("linear", f"{c['index_n_heads'] * c['index_head_dim']}x{c['q_lora_rank']}", layers)
    add("linear", f"{hidden}x{heads * c['v_head_dim']}", layers)
    add("linear", f"{2 * c['intermediate_size']}x{hidden}", dense)
    add("linear", f"{hidden}x{c['intermediate_size']}", dense)
    add("linear", f"{2 * shared}x{hidden}", layers - dense)
    add("linear", f"{hidden}x{shared}", layers - dense)
    inner = c["moe_intermediate_size"]
    add("moe", f"{c['n_routed_experts']}x{hidden}x{inner}", layers - dense)
    return found


def forward_passes(counts: dict[tuple[str, str], dict], config: dict[str, Any]) -> int:
    """How often the model of a report's layers ran; AssertionError unless they all ran as often.

    kv_b_proj may have run less.
    """
    ran = {}
    for (kind, shape), one in counts.items():
        ran[kind, shape], rest = divmod(one["calls"], one["built"])
        assert rest == 0, (kind, shape)
    prompts_only = ran.pop(("linear", kv_b_shape(config)), 0)
    (passes,) = set(ran.values())
    assert prompts_only < passes
    return passes


def calls(counts: dict[tuple[str, str], dict], kind: str) -> int:
    """Calls of all layers of a kind in a report."""
    return sum(one["calls"] for (k, _), one in counts.items() if k == kind)


def kv_b_shape(config: dict[str, Any]) -> str:
    """MLA's kv_b_proj, which runs in prompts only: later tokens use its weight in another form.

    Attention to selected tokens uses that form for every token.
    """
    if "kv_lora_rank" not in config:
        return ""
    rows = config["num_attention_heads"] * (config["qk_nope_head_dim"] + config["v_head_dim"])
    return f"{rows}x{config['kv_lora_rank']}"


def expected_sparse_layers(c: dict[str, Any], topk: int) -> dict[tuple[str, str], int]:
    """:func:`expected_layers` that run where tokens are selected, and the two halves of that."""
    found = expected_layers(c)
    del found["linear", kv_b_shape(c)]
    depth = c["kv_lora_rank"] + c["qk_rope_head_dim"]
    attention = f"{c['num_attention_heads']}x{depth}->{c['kv_lora_rank']}"
    both = {("indexer", f"{c['index_head_dim']} top {topk}"), ("sparse_mla", attention)}
    return found | dict.fromkeys(both, c["num_hidden_layers"])

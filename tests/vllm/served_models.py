"""Checkpoints that tell right from wrong: FP8 ones, and twins in bf16 with the same exact weights.

Random models amplify the last bit: a router's near-tie swaps experts and moves every logit. The
weights that lead back into the residual are therefore scaled down by powers of two, and DeepSeek's
router gets biases that set its experts apart (its bf16 scores would often be equal otherwise).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mate_plugin.demo.checkpoint import write_checkpoint

# Sizes where N and K of the experts' matrices end in partial blocks.
OVERRIDES: dict[str, dict[str, Any]] = {
    "deepseek-v3": {},
    "qwen3-moe": {"moe_intermediate_size": 192},
}
CALM = {"deepseek-v3": 0.125, "qwen3-moe": 0.5}
BIAS_SPREAD = 0.5


def write_twins(root: Path, family: str) -> dict[str, Path]:
    """Folders by "fp8" and "bf16"; scales are powers of two, so that bf16 holds exact products."""
    folders = {}
    for quant in ("fp8", "bf16"):
        folder = root / f"{family}-{quant}"
        write_checkpoint(folder, family, quant, pow2_scales=True, overrides=OVERRIDES[family])
        path = folder / "model.safetensors"
        save_file(_calmed(load_file(path), CALM[family]), path, metadata={"format": "pt"})
        folders[quant] = folder
    return folders


def _calmed(weights: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(1)
    for name in sorted(weights):
        if name.endswith("e_score_correction_bias"):
            shape = weights[name].shape
            weights[name] = torch.randn(shape, generator=chance) * BIAS_SPREAD
        # FP8 weights are scaled through their scales, and stay as they are themselves.
        leads_back = "down_proj" in name or "o_proj" in name
        if leads_back and (name.endswith("_scale_inv") or name + "_scale_inv" not in weights):
            weights[name] = weights[name] * factor
    return weights


def expected_layers(folder: Path) -> dict[tuple[str, str], int]:
    """How many FP8 layers of each kind and shape a server of this checkpoint builds."""
    c = json.loads((folder / "config.json").read_text())
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
    add("linear", f"{hidden}x{heads * c['v_head_dim']}", layers)
    add("linear", f"{2 * c['intermediate_size']}x{hidden}", dense)
    add("linear", f"{hidden}x{c['intermediate_size']}", dense)
    add("linear", f"{2 * shared}x{hidden}", layers - dense)
    add("linear", f"{hidden}x{shared}", layers - dense)
    inner = c["moe_intermediate_size"]
    add("moe", f"{c['n_routed_experts']}x{hidden}x{inner}", layers - dense)
    return found


def kv_b_shape(config: dict[str, Any]) -> str:
    """MLA's kv_b_proj, which runs in prompts only: later tokens use its weight in another form."""
    if config["model_type"] != "deepseek_v3":
        return ""
    rows = config["num_attention_heads"] * (config["qk_nope_head_dim"] + config["v_head_dim"])
    return f"{rows}x{config['kv_lora_rank']}"

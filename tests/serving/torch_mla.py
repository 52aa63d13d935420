"""Multi-head latent attention in plain torch: DeepSeek-V3's, and V3.2's over selected tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch_indexer import mask_of, select
from torch_ops import BF16, angles, attend, rotate_pairs_16bit

if TYPE_CHECKING:
    from torch_model import Model


def mla(
    model: Model, x: torch.Tensor, at: str, prompt_length: int, forced: torch.Tensor | None
) -> torch.Tensor:
    """bf16 ``[T, hidden]`` of bf16 ``x[T, hidden]``.

    A model with an indexer appends what it selected to ``model.selections``; ``forced[T, K]`` takes
    the place of that selection.
    """
    c = model.config
    heads, nope, rope = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"]
    rank, value = c["kv_lora_rank"], c["v_head_dim"]
    low = model.linear(x, at + "q_a_proj", at + "kv_a_proj_with_mqa")
    q_low, latent, k_rope = low.split([c["q_lora_rank"], rank, rope], 1)
    q_low = model.norm(q_low, at + "q_a_layernorm")
    q = model.linear(q_low, at + "q_b_proj")
    q_nope, q_rope = q.unflatten(1, (heads, -1)).split([nope, rope], 2)
    latent = model.norm(latent, at + "kv_a_layernorm")[:, None]
    turn = angles(len(x), model.frequencies())
    q_rope = rotate_pairs_16bit(q_rope, *turn)
    k_rope = rotate_pairs_16bit(k_rope[:, None], *turn)
    scale = softmax_scale(c)

    kept = None
    if model.sparse:
        selection = select(model, x, q_low, at)
        model.selections.append(selection)
        kept = selection.chosen if forced is None else mask_of(forced, len(x))
    # Tokens attend to the latents, with kv_b_proj's weights absorbed on both sides.
    both = model.weight[at + "kv_b_proj.weight"].unflatten(0, (heads, nope + value))
    w_uk, w_uv = both.to(BF16).float().split([nope, value], 1)
    absorbed = torch.einsum("thn,hnl->thl", q_nope.float(), w_uk).to(BF16)
    keys = torch.cat([latent, k_rope], 2)
    mixed = attend(torch.cat([absorbed, q_rope], 2), keys, latent, scale, kept)
    mixed = mixed.unflatten(1, (heads, rank)).float()
    out = torch.einsum("thl,hvl->thv", mixed, w_uv).to(BF16).flatten(1)
    if not model.sparse:
        # Without selection, the prompt's keys and values come from kv_b_proj's GEMM.
        kv = model.linear(latent[:, 0], at + "kv_b_proj").unflatten(1, (heads, -1))
        k = torch.cat([kv[..., :nope], k_rope.expand(-1, heads, -1)], 2)
        prompt = attend(torch.cat([q_nope, q_rope], 2), k, kv[..., nope:], scale)
        out = torch.cat([prompt[:prompt_length], out[prompt_length:]])
    return model.linear(out, at + "o_proj")


def softmax_scale(config: dict[str, Any]) -> float:
    """One over the root of the head's dimension, times what YaRN asks for."""
    scaling = config["rope_scaling"]
    mscale = 0.1 * scaling["mscale_all_dim"] * math.log(scaling["factor"]) + 1.0
    return (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5 * mscale**2


def yarn_frequencies(config: dict[str, Any]) -> torch.Tensor:
    """Angle per position ``[qk_rope_head_dim / 2]``."""
    scaling, dim, base = config["rope_scaling"], config["qk_rope_head_dim"], config["rope_theta"]
    length = scaling["original_max_position_embeddings"]
    positions = base ** (torch.arange(0, dim, 2) / dim)

    def index(rotations: float) -> float:
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(index(scaling["beta_fast"])), 0)
    high = min(math.ceil(index(scaling["beta_slow"])), dim - 1)
    kept = 1 - ((torch.arange(dim // 2) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return 1 / (scaling["factor"] * positions) * (1 - kept) + 1 / positions * kept

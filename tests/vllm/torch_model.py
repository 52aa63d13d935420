"""The two served families in plain torch, rounding where vLLM and the FP8 path round.

Shares no code with the kernels or the layers. One pass over a whole sequence gives the logits of
every position, so that the tokens a server chose can be judged one by one.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import silu

BLOCK = 128
BF16 = torch.bfloat16


def _spread(scale: torch.Tensor, n: int, k: int) -> torch.Tensor:
    return scale.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]


def _round_groups(x: torch.Tensor) -> torch.Tensor:
    """``x[T, K]`` after e4m3 rounding with one scale per token and 128 columns."""
    parts = []
    for group in x.float().split(BLOCK, 1):
        scale = group.abs().amax(1, keepdim=True).clamp(min=1e-10) / 448
        parts.append((group / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale)
    return torch.cat(parts, 1)


class Model:
    """A checkpoint folder of FP8 weights; ``fp8`` rounds activations before FP8 weights too."""

    def __init__(self, folder: Path, fp8: bool = True) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.deepseek = self.config["model_type"] == "deepseek_v3"
        self.fp8 = fp8
        stored = load_file(folder / "model.safetensors")
        self.quantised = {k for k in stored if k + "_scale_inv" in stored}
        self.weight = {
            name: tensor.float() * _spread(stored[name + "_scale_inv"], *tensor.shape)
            if name in self.quantised
            else tensor.float()
            for name, tensor in stored.items()
            if not name.endswith("_scale_inv")
        }

    def logits(self, tokens: list[int], prompt_length: int) -> torch.Tensor:
        """Float32 logits (rounded to bf16, as vLLM has them) after each of ``tokens``."""
        c = self.config
        residual = self.weight["model.embed_tokens.weight"][tokens].to(BF16)
        x = self._norm(residual, "model.layers.0.input_layernorm")
        for layer in range(c["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            attend = self._mla if self.deepseek else self._attention
            x = attend(x, at + "self_attn.", prompt_length)
            x, residual = self._add_norm(x, residual, at + "post_attention_layernorm")
            dense = self.deepseek and layer < c["first_k_dense_replace"]
            x = self._gated(x, at + "mlp.") if dense else self._moe(x, at + "mlp.")
            last = layer + 1 == c["num_hidden_layers"]
            following = "model.norm" if last else f"model.layers.{layer + 1}.input_layernorm"
            x, residual = self._add_norm(x, residual, following)
        return (x.float() @ self.weight["lm_head.weight"].T).to(BF16).float()

    def _linear(self, x: torch.Tensor, *names: str) -> torch.Tensor:
        """bf16 ``x`` times the (merged) weights of ``names``."""
        fp8 = self.fp8 and names[0] + ".weight" in self.quantised
        rows = _round_groups(x) if fp8 else x.float()
        return (rows @ torch.cat([self.weight[n + ".weight"] for n in names]).T).to(BF16)

    def _gated(self, x: torch.Tensor, at: str) -> torch.Tensor:
        gate, up = self._linear(x, at + "gate_proj", at + "up_proj").float().chunk(2, 1)
        return self._linear((silu(gate) * up).to(BF16), at + "down_proj")

    def _moe(self, x: torch.Tensor, at: str) -> torch.Tensor:
        weights, ids = self._router(x, at)
        out = torch.zeros(x.shape)
        for expert in ids.unique().tolist():
            token, slot = (ids == expert).nonzero(as_tuple=True)
            y = self._gated(x[token], f"{at}experts.{expert}.")
            out.index_add_(0, token, y.float() * weights[token, slot, None])
        out = out.to(BF16)
        return out + self._gated(x, at + "shared_experts.") if self.deepseek else out

    def _router(self, x: torch.Tensor, at: str) -> tuple[torch.Tensor, torch.Tensor]:
        c, topk = self.config, self.config["num_experts_per_tok"]
        logits = self._linear(x, at + "gate").float()
        if not self.deepseek:
            weights, ids = logits.softmax(1).topk(topk, 1)
            return weights / weights.sum(1, keepdim=True), ids
        scores = logits.sigmoid()
        biased = scores + self.weight[at + "gate.e_score_correction_bias"]
        groups = biased.unflatten(1, (c["n_group"], -1))
        best = groups.topk(2, 2)[0].sum(2).topk(c["topk_group"], 1)[1]
        kept = torch.zeros(len(x), c["n_group"]).scatter_(1, best, 1.0).bool()
        ids = groups.masked_fill(~kept[..., None], -math.inf).flatten(1).topk(topk, 1)[1]
        weights = scores.gather(1, ids)
        return weights / weights.sum(1, keepdim=True) * c["routed_scaling_factor"], ids

    def _attention(self, x: torch.Tensor, at: str, prompt_length: int) -> torch.Tensor:
        del prompt_length
        c, dim = self.config, self.config["head_dim"]
        heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        qkv = self._linear(x, at + "q_proj", at + "k_proj", at + "v_proj")
        q, k, v = qkv.unflatten(1, (-1, dim)).split([heads, kv_heads, kv_heads], 1)
        q, k = self._norm(q, at + "q_norm"), self._norm(k, at + "k_norm")
        angles = self._angles(len(x), c["rope_theta"] ** -(torch.arange(0, dim, 2) / dim))
        q, k = _rotate_halves(q, *angles), _rotate_halves(k, *angles)
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        return self._linear(_attend(q, k, v, dim**-0.5), at + "o_proj")

    def _mla(self, x: torch.Tensor, at: str, prompt_length: int) -> torch.Tensor:
        c = self.config
        heads, nope, rope = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"]
        rank, value = c["kv_lora_rank"], c["v_head_dim"]
        low = self._linear(x, at + "q_a_proj", at + "kv_a_proj_with_mqa")
        q_low, latent, k_rope = low.split([c["q_lora_rank"], rank, rope], 1)
        q = self._linear(self._norm(q_low, at + "q_a_layernorm"), at + "q_b_proj")
        q_nope, q_rope = q.unflatten(1, (heads, -1)).split([nope, rope], 2)
        latent = self._norm(latent, at + "kv_a_layernorm")
        angles = self._angles(len(x), self._yarn_frequencies())
        q_rope = _rotate_pairs(q_rope, *angles)
        k_rope = _rotate_pairs(k_rope[:, None], *angles)
        scaling = c["rope_scaling"]
        mscale = 0.1 * scaling["mscale_all_dim"] * math.log(scaling["factor"]) + 1.0
        scale = (nope + rope) ** -0.5 * mscale**2
        # The prompt's keys and values come from kv_b_proj's GEMM.
        kv = self._linear(latent, at + "kv_b_proj").unflatten(1, (heads, -1))
        k = torch.cat([kv[..., :nope], k_rope.expand(-1, heads, -1)], 2)
        out = _attend(torch.cat([q_nope, q_rope], 2), k, kv[..., nope:], scale)
        # Later tokens attend to the latents, with kv_b_proj's weights absorbed on both sides.
        both = self.weight[at + "kv_b_proj.weight"].unflatten(0, (heads, nope + value))
        w_uk, w_uv = both.to(BF16).float().split([nope, value], 1)
        absorbed = torch.einsum("thn,hnl->thl", q_nope.float(), w_uk).to(BF16)
        keys = torch.cat([latent, k_rope[:, 0]], 1)[:, None].expand(-1, heads, -1)
        latents = latent[:, None].expand(-1, heads, -1)
        mixed = _attend(torch.cat([absorbed, q_rope], 2), keys, latents, scale)
        mixed = mixed.unflatten(1, (heads, rank)).float()
        later = torch.einsum("thl,hvl->thv", mixed, w_uv).to(BF16).flatten(1)
        return self._linear(torch.cat([out[:prompt_length], later[prompt_length:]]), at + "o_proj")

    def _yarn_frequencies(self) -> torch.Tensor:
        c, scaling, dim = self.config, self.config["rope_scaling"], self.config["qk_rope_head_dim"]
        base, length = c["rope_theta"], scaling["original_max_position_embeddings"]
        frequency = base ** -(torch.arange(0, dim, 2) / dim)

        def index(rotations: float) -> float:
            return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

        low = max(math.floor(index(scaling["beta_fast"])), 0)
        high = min(math.ceil(index(scaling["beta_slow"])), dim - 1)
        ramp = ((torch.arange(dim // 2) - low) / max(high - low, 1e-3)).clamp(0, 1)
        return frequency / scaling["factor"] * ramp + frequency * (1 - ramp)

    def _angles(self, length: int, frequency: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = torch.arange(length)[:, None] * frequency
        return angle.cos().to(BF16).float()[:, None], angle.sin().to(BF16).float()[:, None]

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return self._normalise(x.float(), name)

    def _add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, name: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x.float() + residual.float()
        return self._normalise(total, name), total.to(BF16)

    def _normalise(self, x: torch.Tensor, name: str) -> torch.Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x.to(BF16) * self.weight[name + ".weight"].to(BF16)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention of ``[T, heads, dim]`` operands in float32, as bf16 ``[T, heads * dim]``."""
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) * scale
    length = scores.shape[1]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v.float()).to(BF16).flatten(1)


def _rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(BF16)


def _rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).to(BF16)

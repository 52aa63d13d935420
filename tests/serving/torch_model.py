"""The served families in plain torch, rounding where vLLM and the FP8 path round.

Shares no code with the kernels or the layers. One pass over a whole sequence gives the logits of
every position, so that the tokens a server chose can be judged one by one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import silu
from torch_indexer import Selection
from torch_mla import mla, yarn_frequencies
from torch_ops import BF16, angles, attend, rms_norm, rotate_halves, round_groups, spread


class Model:
    """A checkpoint folder; ``fp8`` rounds activations before FP8 weights too.

    After :meth:`logits`, ``selections`` holds what the indexer of each layer selected.
    """

    def __init__(self, folder: Path, fp8: bool = True) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.deepseek = self.config["model_type"].startswith("deepseek")
        self.sparse = "index_topk" in self.config
        self.fp8 = fp8
        self.selections: list[Selection] = []
        stored = load_file(folder / "model.safetensors")
        scaled = {name for name in stored if name + "_scale_inv" in stored}
        self.weight = {
            name: tensor.float() * spread(stored[name + "_scale_inv"], *tensor.shape)
            if name in scaled
            else tensor.float()
            for name, tensor in stored.items()
            if not name.endswith("_scale_inv")
        }
        # vLLM turns the indexer's wk into bf16 when it loads it.
        turned = {name for name in scaled if name.endswith("indexer.wk.weight")}
        for name in turned:
            self.weight[name] = self.weight[name].to(BF16).float()
        self.quantised = scaled - turned

    def logits(
        self,
        tokens: list[int],
        prompt_length: int,
        forced: Sequence[torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """Float32 logits (rounded to bf16, as vLLM has them) after each of ``tokens``.

        ``forced`` has the tokens that attention reads in each layer, ``[T, K]`` positions with -1
        where a row has fewer, in place of the indexer's own selection.
        """
        c = self.config
        assert forced is None or (self.sparse and len(forced) == c["num_hidden_layers"])
        self.selections = []
        residual = self.weight["model.embed_tokens.weight"][tokens].to(BF16)
        x = self.norm(residual, "model.layers.0.input_layernorm")
        for layer in range(c["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            if self.deepseek:
                chosen = None if forced is None else forced[layer]
                x = mla(self, x, at + "self_attn.", prompt_length, chosen)
            else:
                x = self._attention(x, at + "self_attn.")
            x, residual = self._add_norm(x, residual, at + "post_attention_layernorm")
            dense = self.deepseek and layer < c["first_k_dense_replace"]
            x = self._gated(x, at + "mlp.") if dense else self._moe(x, at + "mlp.")
            last = layer + 1 == c["num_hidden_layers"]
            following = "model.norm" if last else f"model.layers.{layer + 1}.input_layernorm"
            x, residual = self._add_norm(x, residual, following)
        return (x.float() @ self.weight["lm_head.weight"].T).to(BF16).float()

    def linear(self, x: torch.Tensor, *names: str) -> torch.Tensor:
        """bf16 ``x`` times the (merged) weights of ``names``."""
        fp8 = self.fp8 and names[0] + ".weight" in self.quantised
        rows = round_groups(x) if fp8 else x.float()
        return (rows @ torch.cat([self.weight[n + ".weight"] for n in names]).T).to(BF16)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """RMS norm with the weight of ``name``."""
        return rms_norm(x.float(), self.weight[name + ".weight"], self.config["rms_norm_eps"])

    def frequencies(self) -> torch.Tensor:
        """The angle per position of each rotated pair of elements."""
        c = self.config
        if self.deepseek:
            return yarn_frequencies(c)
        return 1 / c["rope_theta"] ** (torch.arange(0, c["head_dim"], 2) / c["head_dim"])

    def _add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, name: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x.float() + residual.float()
        return self.norm(total, name), total.to(BF16)

    def _gated(self, x: torch.Tensor, at: str) -> torch.Tensor:
        gate, up = self.linear(x, at + "gate_proj", at + "up_proj").float().chunk(2, 1)
        return self.linear((silu(gate) * up).to(BF16), at + "down_proj")

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
        logits = self.linear(x, at + "gate").float()
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

    def _attention(self, x: torch.Tensor, at: str) -> torch.Tensor:
        c, dim = self.config, self.config["head_dim"]
        heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        qkv = self.linear(x, at + "q_proj", at + "k_proj", at + "v_proj")
        q, k, v = qkv.unflatten(1, (-1, dim)).split([heads, kv_heads, kv_heads], 1)
        q, k = self.norm(q, at + "q_norm"), self.norm(k, at + "k_norm")
        turn = angles(len(x), self.frequencies())
        q, k = rotate_halves(q, *turn), rotate_halves(k, *turn)
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        return self.linear(attend(q, k, v, dim**-0.5), at + "o_proj")

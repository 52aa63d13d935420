"""The indexer of DeepSeek-V3.2 in plain torch, rounding where vLLM rounds off CUDA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch_ops import BF16, CHUNK, FP8, angles, rotate_halves_16bit

if TYPE_CHECKING:
    from torch_model import Model

K_NORM_EPS = 1e-6


@dataclass(frozen=True)
class Selection:
    """What the indexer of one layer made of a sequence of T tokens."""

    scores: torch.Tensor  # [T, T] float32, -inf where the column is later than the row
    chosen: torch.Tensor  # [T, T] bool, index_topk of each row or all of a shorter one


@dataclass(frozen=True)
class Operands:
    """FP8 operands of the scores; the scales of q are folded into the weights."""

    q: torch.Tensor  # [T, heads, dim] e4m3
    weights: torch.Tensor  # [T, heads] float32
    k: torch.Tensor  # [T, dim] e4m3
    k_scale: torch.Tensor  # [T] float32, powers of two


def select(model: Model, x: torch.Tensor, q_low: torch.Tensor, at: str) -> Selection:
    """Scores and choice of each token; ``x[T, hidden]`` and ``q_low[T, q_lora_rank]`` normed."""
    scores = score(operands(model, x, q_low, at + "indexer."))
    return Selection(scores, choose(scores, model.config["index_topk"]))


def operands(model: Model, x: torch.Tensor, q_low: torch.Tensor, at: str) -> Operands:
    """Rotate and quantise queries and keys; their first ``qk_rope_head_dim`` elements rotate."""
    c = model.config
    heads, dim, rope = c["index_n_heads"], c["index_head_dim"], c["qk_rope_head_dim"]
    q = model.linear(q_low, at + "wq_b").unflatten(1, (heads, dim))
    k, weights = model.linear(x, at + "wk", at + "weights_proj").split([dim, heads], 1)
    k = torch.nn.functional.layer_norm(
        k.float(),
        (dim,),
        model.weight[at + "k_norm.weight"],
        model.weight[at + "k_norm.bias"],
        K_NORM_EPS,
    ).to(BF16)[:, None]
    turn = angles(len(x), model.frequencies())
    q, k = (
        torch.cat([rotate_halves_16bit(t[..., :rope], *turn), t[..., rope:]], -1) for t in (q, k)
    )
    q, q_scale = _quantise(q, 1e-10)
    k, k_scale = _quantise(k[:, 0], 1e-4)
    weights = weights.float() * q_scale * dim**-0.5 * heads**-0.5
    return Operands(q, weights, k, k_scale)


def _quantise(x: torch.Tensor, smallest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 codes and a power of two for each vector of ``x[..., dim]``."""
    x = x.float()
    scale = torch.exp2(torch.ceil(torch.log2(x.abs().amax(-1).clamp(min=smallest) * (1 / 448))))
    return (x / scale[..., None]).clamp(-448, 448).to(FP8), scale


def score(o: Operands) -> torch.Tensor:
    """``k_scale[j] * sum_h weights[i, h] * relu(q[i, h] . k[j])``, -inf for j > i."""
    length, heads, _ = o.q.shape
    keys = o.k.float().T.contiguous()
    scores = torch.full((length, length), -math.inf)
    for start in range(0, length, CHUNK):
        end = min(start + CHUNK, length)
        total = torch.zeros(end - start, end)
        for head in range(heads):
            dots = o.q[start:end, head].float() @ keys[:, :end]
            total += dots.relu_().mul_(o.weights[start:end, head, None])
        scores[start:end, :end] = total * o.k_scale[:end]
    return scores.masked_fill_(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)


def choose(scores: torch.Tensor, topk: int) -> torch.Tensor:
    """Bool ``[T, T]``: the ``topk`` largest scores of each row, all of a row that has fewer."""
    chosen = torch.zeros(scores.shape, dtype=torch.bool)
    chosen.scatter_(1, scores.topk(min(topk, len(scores)), 1)[1], True)
    return chosen & (scores > -math.inf)


def mask_of(indices: torch.Tensor, length: int) -> torch.Tensor:
    """Bool ``[T, T]`` of the positions in ``indices[T, K]``, -1 where a row has fewer."""
    mask = torch.zeros(length, length + 1, dtype=torch.bool)
    mask.scatter_(1, indices.long().masked_fill(indices < 0, length), True)
    assert not mask[:, :length].triu(1).any(), "a token reads one that comes after it"
    return mask[:, :length]


def dispute(selection: Selection, indices: torch.Tensor) -> torch.Tensor:
    """How far from the last score that was chosen those are that only one side chose, ``[T]``.

    ``indices[T, K]`` is the other side's choice, which must have as many tokens in each row.
    """
    other = mask_of(indices, len(indices))
    assert torch.equal(other.sum(1), selection.chosen.sum(1)), "rows of other lengths"
    last = selection.scores.masked_fill(~selection.chosen, math.inf).amin(1, keepdim=True)
    return (selection.scores - last).abs().masked_fill(other == selection.chosen, 0).amax(1)

"""How far the tokens of a server are from those of another one, or of a torch model."""

from __future__ import annotations

import torch
from engine_server import NEW_TOKENS, Answer, prompts
from torch_model import Model

# The engines' logits are bf16: near 20 two neighbours are 0.125 apart, and sums in another order
# move a logit by one step. Tokens closer than two steps in the reference are a tie.
NEAR_TIE = 0.25


def divergences(
    reference: list[Answer], ours: list[Answer], asked: list[list[int]]
) -> tuple[list[str], list[float], float]:
    """A line per prompt, the reference's gap at each first difference, and the mean difference of
    the logprobs up to there."""
    lines, gaps, differences = [], [], []
    for length, a, b in zip(map(len, asked), reference, ours, strict=True):
        assert len(a.tokens) == len(b.tokens) == NEW_TOKENS
        same = [x == y for x, y in zip(a.tokens, b.tokens, strict=True)]
        first = same.index(False) if False in same else NEW_TOKENS
        differences += [
            abs(a.top[i][a.tokens[i]] - b.top[i].get(a.tokens[i], -100.0)) for i in range(first)
        ]
        if first == NEW_TOKENS:
            lines.append(f"prompt of {length}: the same {NEW_TOKENS} tokens")
            continue
        chosen, other = a.tokens[first], b.tokens[first]
        gaps.append(a.top[first][chosen] - a.top[first].get(other, -100.0))
        lines.append(f"prompt of {length}: differs at token {first}, logprob gap {gaps[-1]:.4f}")
    return lines, gaps, sum(differences) / len(differences)


def judge(model: Model, answers: list[Answer]) -> tuple[list[float], float]:
    """How far each token is behind the model's own; mean difference of the candidates' logprobs."""
    gaps, differences = [], []
    for prompt, answer in zip(prompts(), answers, strict=True):
        ids = [int(token.split(":")[1]) for token in answer.tokens]
        logits = model.logits(prompt + ids[:-1], len(prompt))[len(prompt) - 1 :]
        logprobs = logits.log_softmax(1)
        chosen = logprobs.gather(1, torch.tensor(ids)[:, None])[:, 0]
        gaps += (logprobs.amax(1) - chosen).tolist()
        for row, top in zip(logprobs, answer.top, strict=True):
            candidates = [int(token.split(":")[1]) for token in top]
            differences += (torch.tensor(list(top.values())) - row[candidates]).abs().tolist()
    return gaps, sum(differences) / len(differences)

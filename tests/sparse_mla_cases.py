"""Random problems of attention over selected rows and the comparison with the oracle."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from mate_plugin.kernels.reference import sparse_mla as oracle
from mate_plugin.kernels.sparse_mla import sparse_mla

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
UNIT = 2.0**-24  # half a unit in the last place of float32 at 1


@dataclass
class Case:
    """Arguments of ``sparse_mla``; rows that nobody selects hold NaN."""

    q: torch.Tensor
    kv_cache: torch.Tensor
    indices: torch.Tensor | None
    block_table: torch.Tensor
    request_of_token: torch.Tensor
    value_dim: int
    scale: float
    lengths: torch.Tensor | None = None

    def arguments(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def run(self, out_dtype: torch.dtype | None = F32, **options: Any) -> torch.Tensor:
        if out_dtype is not None and "out" not in options:
            shape = (*self.q.shape[:2], self.value_dim)
            options["out"] = torch.full(shape, 7.0, dtype=out_dtype)
        return sparse_mla(**{**self.arguments(), **options})

    def reference(self) -> torch.Tensor:
        return oracle.sparse_mla(**self.arguments())

    def tokens(self, *which: int) -> Case:
        """The same problem with some of its tokens only."""
        pick = list(which)
        return dataclasses.replace(
            self,
            q=self.q[pick],
            request_of_token=self.request_of_token[pick],
            indices=None if self.indices is None else self.indices[pick],
            lengths=None if self.lengths is None else self.lengths[pick],
        )

    def selected(self, token: int) -> torch.Tensor:
        """Rows that a token attends to, float64 (n, D); none for padding."""
        request = int(self.request_of_token[token])
        if request < 0:
            return torch.zeros(0, self.q.shape[2], dtype=torch.float64)
        positions = oracle.selected(token, self.indices, self.lengths)
        return oracle.rows_of(self.kv_cache, self.block_table, request, positions)

    def bound(self) -> torch.Tensor:
        """Error of float32 sums: an error of a score moves its weight by as much."""
        bound = torch.zeros(*self.q.shape[:2], self.value_dim, dtype=torch.float64)
        for token in range(self.q.shape[0]):
            rows = self.selected(token)
            if len(rows) == 0:
                continue
            q = self.q[token].double()
            weights = torch.softmax(self.scale * (q @ rows.T), dim=-1)
            sizes = self.scale * (q.abs() @ rows.abs().T)
            worst = 16 * UNIT * (2 * sizes.amax(dim=1, keepdim=True) + 2)
            bound[token] = worst * (weights @ rows[:, : self.value_dim].abs())
        return bound + 1e-30

    def check(self, **options: Any) -> torch.Tensor:
        out = self.run(**options)
        error = (out.double() - self.reference()).abs() / self.bound()
        assert bool((error <= 1).all()), f"worst {float(error.nan_to_num(1e9).max()):.3g} of it"
        return out


def case(
    seed: int,
    tokens: int = 3,
    heads: int = 4,
    count: int = 20,
    depth: int = 48,
    value_dim: int = 32,
    block: int = 16,
    contexts: tuple[int, ...] = (70, 33),
    dtype: torch.dtype = BF16,
    q_dtype: torch.dtype | None = None,
    listed: bool = True,
    holes: float = 0.2,
) -> Case:
    """Tokens of random requests with ``count`` selections each, some of them -1 or repeated."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    widths = [-(-context // block) for context in contexts]
    num_blocks = sum(widths) + 2
    free = torch.randperm(num_blocks, generator=generator).tolist()
    block_table = torch.full((len(contexts), max(widths) + 1), -1, dtype=torch.int32)
    for request, width in enumerate(widths):
        block_table[request, :width] = torch.tensor([free.pop() for _ in range(width)])
    request_of_token = draw(0, len(contexts), tokens)
    rows = torch.randn(num_blocks, block, depth, generator=generator).to(dtype)
    cache = torch.full_like(rows, float("nan"))
    room = torch.tensor([contexts[r] for r in request_of_token.tolist()])
    indices = lengths = None
    if listed:
        indices = (torch.rand(tokens, count, generator=generator) * room[:, None]).int()
        indices[torch.rand(tokens, count, generator=generator) < holes] = -1
    else:
        lengths = torch.tensor([int(draw(0, r + 1, 1)) for r in room.tolist()], dtype=torch.int32)
    q = torch.randn(tokens, heads, depth, generator=generator).to(q_dtype or dtype)
    made = Case(
        q, cache, indices, block_table, request_of_token, value_dim, depth**-0.5, lengths=lengths
    )
    for token, request in enumerate(request_of_token.tolist()):
        positions = oracle.selected(token, indices, lengths)
        where = block_table[request].long()[positions // block], positions % block
        cache[where] = rows[where]
    return made

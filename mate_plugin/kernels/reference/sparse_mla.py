"""Plain-torch oracle of attention over selected latent rows, in float64."""

from __future__ import annotations

import torch


def rows_of(
    kv_cache: torch.Tensor, block_table: torch.Tensor, request: int, positions: torch.Tensor
) -> torch.Tensor:
    """Latent rows (positions, D) of a request in float64."""
    block = kv_cache.shape[1]
    positions = positions.long()
    return kv_cache[block_table[request].long()[positions // block], positions % block].double()


def selected(
    token: int, indices: torch.Tensor | None, lengths: torch.Tensor | None
) -> torch.Tensor:
    """Positions that a token attends to, in order."""
    if indices is None:
        assert lengths is not None
        return torch.arange(max(0, int(lengths[token])))
    row = indices[token].long()
    return row[row >= 0]


def sparse_mla(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    indices: torch.Tensor | None,
    block_table: torch.Tensor,
    request_of_token: torch.Tensor,
    value_dim: int,
    scale: float,
    *,
    lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """What ``sparse_mla`` computes, float64 (T, H, value_dim), unrounded."""
    out = torch.zeros(*q.shape[:2], value_dim, dtype=torch.float64)
    for token, request in enumerate(request_of_token.tolist()):
        positions = selected(token, indices, lengths)
        if request < 0 or positions.numel() == 0:
            continue
        rows = rows_of(kv_cache, block_table, request, positions)
        weights = torch.softmax(scale * (q[token].double() @ rows.T), dim=-1)
        out[token] = weights @ rows[:, :value_dim]
    return out

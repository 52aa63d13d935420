"""Attention of heads without an engine: its shapes, and its errors."""

from __future__ import annotations

import pytest
import torch

from mate_plugin.indexer.batch import Batch, request_of_token
from mate_plugin.layers.attention import attend, unserved_shape

LENS, PAGE, SCALE = [37, 1, 20], 16, 0.4


def case(heads: int, kv_heads: int, depth: int, value_dim: int):
    """The last two tokens of each request, if there are as many."""
    torch.manual_seed(0)
    counts = [min(2, length) for length in LENS]
    starts = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    table = torch.tensor([[5, 2, 7], [1, 0, 0], [3, 6, 0]], dtype=torch.int32)
    owners = request_of_token(starts, sum(counts))
    lens = torch.tensor(LENS, dtype=torch.int32)
    batch = Batch(starts, lens, table, torch.empty(0, dtype=torch.int64), owners)
    seen = [n - c + i + 1 for n, c in zip(LENS, counts, strict=True) for i in range(c)]
    q = torch.randn(sum(counts), heads, depth).bfloat16()
    rows = torch.randn(8, PAGE, kv_heads, value_dim + depth).bfloat16()
    return batch, torch.tensor(seen, dtype=torch.int32), q, rows


@pytest.mark.parametrize(
    "shape", [(1, 1, 16, 16), (6, 2, 48, 32), (5, 5, 32, 64), (16, 1, 128, 128)]
)
def test_is_attention_in_groups(shape):
    batch, seen, q, rows = case(*shape)
    heads, kv_heads, _, value_dim = shape
    found = attend(batch, seen, q, rows, SCALE)
    assert (found.shape, found.dtype) == ((q.shape[0], heads, value_dim), q.dtype)
    for t, request in enumerate(batch.request_of_token.tolist()):
        own = rows[batch.block_table[request].long()].flatten(0, 1)[: seen[t]].double()
        for h in range(heads):
            head = own[:, h // (heads // kv_heads)]
            chances = (head[:, value_dim:] @ q[t, h].double() * SCALE).softmax(0)
            expected = chances @ head[:, :value_dim]
            torch.testing.assert_close(found[t, h].double(), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((4, 3, 32, 32), "4 heads in 3 groups"),
        ((4, 2, 24, 32), "a head of 24, which is no multiple of 16"),
        ((4, 2, 32, 8), "a head of 8, which is no multiple of 16"),
    ],
)
def test_a_shape_without_a_kernel_is_named(shape, reason):
    assert unserved_shape(*shape) == reason
    with pytest.raises(ValueError, match=f"^q, rows: .* kernel serves, got {reason}$"):
        attend(*case(*shape), SCALE)

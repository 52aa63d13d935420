"""Attention of heads to the tokens before them, MHA and GQA, engine-free.

A cache row holds the value of a head before its key, and a query is padded with zeros where the
value is: then it is the attention of :func:`mate_plugin.kernels.sparse_mla.sparse_mla`, by which a
token has the same bits read as part of a prompt, generated, and in any batch.
"""

from __future__ import annotations

import torch

from mate_plugin import report
from mate_plugin.indexer.batch import Batch
from mate_plugin.kernels.sparse_mla import WIDTH_UNIT, sparse_mla
from mate_plugin.layers.plan import implementation

KIND = "attention"
CACHE_DTYPES = (torch.bfloat16, torch.float16)


def shape_name(heads: int, kv_heads: int, depth: int, value_dim: int) -> str:
    """Name of an attention's shape in reports."""
    return f"{heads}/{kv_heads}x{depth}->{value_dim}"


def note_layer(shape: str) -> None:
    """Tell the report of a layer that the kernel serves."""
    impl, reason = implementation("sparse_mla", "cpu")
    report.layer_built(KIND, shape, f"{impl}: {reason}")


def unserved_shape(heads: int, kv_heads: int, depth: int, value_dim: int) -> str | None:
    """Why there is no kernel for a shape, or None."""
    if heads % kv_heads:
        return f"{heads} heads in {kv_heads} groups"
    for width in (depth, value_dim):
        if width % WIDTH_UNIT:
            return f"a head of {width}, which is no multiple of {WIDTH_UNIT}"
    return None


def attend(
    batch: Batch,
    lengths: torch.Tensor,
    q: torch.Tensor,
    rows: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention of the tokens of a step to the first tokens of their requests.

    Args:
        batch: the step.
        lengths: int32 (T,), tokens that each token may look at.
        q: bfloat16 or float16 (T, heads, D).
        rows: bfloat16 or float16 (num_blocks, block, kv_heads, V + D), any strides but the last:
            a value, then a key. Heads of a group lie one after the other.
        scale: factor of the scores.

    Returns:
        (T, heads, V) in the dtype of ``q``. As zeros meet the values, one that is not finite makes
        the heads NaN that look at it.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    tokens, heads, depth = q.shape
    kv_heads, value_dim = rows.shape[2], rows.shape[3] - depth
    if reason := unserved_shape(heads, kv_heads, depth, value_dim):
        raise ValueError(f"q, rows: expected a shape that the kernel serves, got {reason}")
    out = q.new_empty((tokens, heads, value_dim))
    padded = torch.nn.functional.pad(q, (value_dim, 0)).unflatten(1, (kv_heads, -1))
    for group, to in enumerate(out.unflatten(1, (kv_heads, -1)).unbind(1)):
        sparse_mla(
            padded[:, group],
            rows[:, :, group],
            None,
            batch.block_table,
            batch.request_of_token,
            value_dim,
            scale,
            lengths=lengths,
            out=to,
        )
    report.layer_called(KIND, shape_name(heads, kv_heads, depth, value_dim))
    return out

"""The two halves of a sparse attention layer, engine-free: select tokens, attend to them."""

from __future__ import annotations

import torch

from mate_plugin import report
from mate_plugin.config import settings
from mate_plugin.indexer import dump
from mate_plugin.indexer.batch import Batch
from mate_plugin.kernels import index_topk as kernel
from mate_plugin.kernels.indexer_cache import quant_and_write_k
from mate_plugin.kernels.sparse_mla import sparse_mla
from mate_plugin.layers.plan import implementation

MIB = 1 << 20
INDEXER, ATTENTION = "indexer", "sparse_mla"


def logits_budget() -> int:
    """Bytes that the logits of one call may take, from the settings."""
    return settings().logits_budget_mb * MIB


def describe() -> str:
    """One phrase about what serves both halves. NotImplementedError where nothing does."""
    impl, reason = implementation("index_topk", "cpu")
    return f"FP8 indexer within {settings().logits_budget_mb} MiB, sparse MLA, {impl}: {reason}"


def indexer_shape(depth: int, topk: int) -> str:
    """Name of an indexer's shape in reports."""
    return f"{depth} top {topk}"


def attention_shape(heads: int, depth: int, value_dim: int) -> str:
    """Name of an attention's shape in reports."""
    return f"{heads}x{depth}->{value_dim}"


def note_layer(kind: str, shape: str) -> None:
    """Tell the report of a layer that is ready."""
    impl, reason = implementation("sparse_mla" if kind == ATTENTION else "index_topk", "cpu")
    report.layer_built(kind, shape, f"{impl}: {reason}")


def write_keys(batch: Batch, k: torch.Tensor, kv_cache: torch.Tensor) -> None:
    """Quantise ``k`` (T, D) with a power-of-two scale per token and write it into the cache.

    ``k`` is of 16 bits or float32, ``kv_cache`` uint8 (num_blocks, block, D + 4), a block's codes
    before its scales.
    """
    quant_and_write_k(k, kv_cache, batch.slot_mapping, ue8m0=True)


def select_tokens(
    batch: Batch,
    q: torch.Tensor,
    weights: torch.Tensor,
    kv_cache: torch.Tensor,
    topk: int,
    out: torch.Tensor,
    layer: str,
) -> None:
    """Select the best ``topk`` tokens for each query, once the keys of the step are written.

    Args:
        batch: the step.
        q: FP8 (T, heads, D); its scales are part of ``weights``.
        weights: float32 (T, heads).
        kv_cache: uint8 (num_blocks, block, D + 4), a block's codes before its scales.
        topk: tokens to select for each query, among those up to its own.
        out: int32 (at least T, topk), positions in ascending order, then -1. Rows past the tokens
            of the batch become -1.
        layer: name for the dump of selections.

    Raises:
        TypeError, ValueError: an argument is not as described, or the logits budget of the
            settings is too small for one row.
    """
    rows = out[: q.shape[0]]
    kernel.index_topk(
        q,
        kv_cache,
        weights,
        batch.query_start_loc,
        batch.seq_lens,
        batch.block_table,
        topk,
        budget=logits_budget(),
        out=rows,
    )
    note_selection(batch, rows, q.shape[2], layer)


def note_selection(batch: Batch, indices: torch.Tensor, depth: int, layer: str) -> None:
    """Count one run of an indexer with keys of ``depth`` numbers, and dump the (T, topk) tokens
    that it selected where the settings ask for it."""
    report.layer_called(INDEXER, indexer_shape(depth, indices.shape[1]))
    dump.selection(layer, batch, indices)


def attend(
    batch: Batch,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    indices: torch.Tensor | None,
    value_dim: int,
    scale: float,
    *,
    lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multi-query attention of (T, heads, D) queries to the tokens at ``indices`` (T, topk), or to
    the first ``lengths`` (T,) tokens of their requests.

    Returns (T, heads, ``value_dim``) in the queries' dtype. See
    :func:`mate_plugin.kernels.sparse_mla.sparse_mla`.
    """
    out = sparse_mla(
        q,
        kv_cache,
        indices,
        batch.block_table,
        batch.request_of_token,
        value_dim,
        scale,
        lengths=lengths,
    )
    report.layer_called(ATTENTION, attention_shape(q.shape[1], q.shape[2], value_dim))
    return out

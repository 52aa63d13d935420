"""Scores of the lightning indexer and their schedule."""

from __future__ import annotations

import math

import torch

from mate_plugin.kernels import library
from mate_plugin.kernels.forms import E4M3, NOTHING, Call, Form, discontiguous
from mate_plugin.kernels.vendor.package import Vendor

# What the kernels of the logits are made for.
CACHE_BLOCK, DRAFTS, HEADS, DEPTHS = 64, (1, 2, 4), (32, 64), (32, 64, 128)


def paged_mqa_metadata(
    _vendor: Vendor, context_lens: torch.Tensor, out: torch.Tensor, block_kv: int, *_: int
) -> Form:
    """The schedule has the rows of ``out`` less one processors."""
    processors = out.shape[0] - 1
    if context_lens.shape[0] == 0:
        return "there are no requests"
    if block_kv != CACHE_BLOCK:
        return f"block_kv is {block_kv}, expected {CACHE_BLOCK}"
    if reason := _lengths(context_lens):
        return reason
    if processors > library.processors(out.device):
        return "num_mps is more than the device has"
    arguments = {"context_lens": context_lens, "block_kv": block_kv, "num_mps": processors}
    return Call("get_paged_mqa_logits_metadata", arguments)


def _lengths(context_lens: torch.Tensor) -> str:
    """Its schedules count the last draft of a request where ours count the longest."""
    if context_lens.dim() == 2 and context_lens.shape[1] > 1:
        return "context_lens differ by draft, and of those it schedules the last alone"
    return discontiguous(context_lens=context_lens)


def paged_mqa_logits(
    _vendor: Vendor,
    q: torch.Tensor,
    cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    out: torch.Tensor | int,
    _q_tag: int,
    clean: bool,
    clean_value: float,
    schedule: torch.Tensor,
    num_mp: int,
    _stream: int,
) -> Form:
    """``out`` is the number of columns where the caller takes the vendor's own tensor.

    Lengths that its metadata function would refuse are refused here as well, so that a schedule
    and the logits come from the same side.
    """
    if not isinstance(out, int) and out.numel() == 0:
        return NOTHING
    _, next_n, heads, depth = q.shape
    if next_n not in DRAFTS:
        return f"next_n is {next_n}, expected one of {DRAFTS}"
    if cache.shape[1] != CACHE_BLOCK:
        return f"blocks of the cache hold {cache.shape[1]} tokens, expected {CACHE_BLOCK}"
    if cache.stride(2) != cache.shape[3]:
        return "fused_kv_cache: rows of a block are not contiguous"
    if num_mp and schedule.shape[0] - 1 > num_mp:
        return "num_mp is below the processors of the schedule"
    if reason := (
        _lengths(context_lens)
        or _indexer(q, heads, depth, weights, clean, clean_value)
        or discontiguous(schedule_meta=schedule)
    ):
        return reason
    arguments = {
        "q": q,
        "fused_kv_cache": cache,
        "weights": weights,
        "context_lens": context_lens,
        "block_table": block_table,
        "schedule_meta": schedule,
        "max_context_len": _columns(out),
        "clean_logits": clean,
    }
    return Call("fp8_paged_mqa_logits", arguments)


def mqa_logits(
    _vendor: Vendor,
    q: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    first: torch.Tensor,
    end: torch.Tensor,
    out: torch.Tensor | int,
    _q_tag: int,
    _k_tag: int,
    compressed: bool,
    clean: bool,
    clean_value: float,
    num_mp: int,
    _stream: int,
) -> Form:
    """``out`` as above."""
    if not isinstance(out, int) and out.numel() == 0:
        return NOTHING
    _, heads, depth = q.shape
    if k.dtype != E4M3:
        return f"the keys are {k.dtype}"
    if num_mp:
        return "num_mp has no effect on it"
    if compressed and _columns(out) > k.shape[0]:
        return "max_seqlen_k is more than the number of keys"
    if reason := (
        _indexer(q, heads, depth, weights, clean, clean_value)
        or discontiguous(**{"kv[0]": k, "kv[1]": k_scale})
        or discontiguous(cu_seq_len_k_start=first, cu_seq_len_k_end=end)
    ):
        return reason
    arguments = {
        "q": q,
        "kv": (k, k_scale),
        "weights": weights,
        "cu_seq_len_k_start": first,
        "cu_seq_len_k_end": end,
        "clean_logits": clean,
        "max_seqlen_k": _columns(out) if compressed else 0,
    }
    return Call("fp8_mqa_logits", arguments)


def _columns(out: torch.Tensor | int) -> int:
    return out if isinstance(out, int) else out.shape[1]


def _indexer(
    q: torch.Tensor, heads: int, depth: int, weights: torch.Tensor, clean: bool, value: float
) -> str:
    if q.dtype != E4M3:
        return f"the queries are {q.dtype}"
    if heads not in HEADS:
        return f"there are {heads} heads, expected one of {HEADS}"
    if depth not in DEPTHS:
        return f"D is {depth}, expected one of {DEPTHS}"
    if clean and value != -math.inf:
        return f"clean_value is {value}, and it fills with -inf"
    return discontiguous(q=q, weights=weights)

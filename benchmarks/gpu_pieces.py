"""The kernels around the GEMMs, which only move memory: their peer is a copy of as many bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from gpu_timing import Case, Named

from mate_plugin.kernels import indexer_cache, moe, quant
from mate_plugin.kernels.topk import top_k

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
HIDDEN, INNER, TOPK, EXPERTS = 7168, 2048, 8, 256
DEPTH, BLOCK = 128, 64
TOKENS = (16, 128, 1024, 8192)
# Rows of logits, their length and how many are taken.
LARGEST = (
    (1, 131072, 2048),
    (64, 8192, 2048),
    (64, 65536, 2048),
    (64, 131072, 2048),
    (2048, 8192, 2048),
    (2048, 32768, 2048),
    (1024, 131072, 2048),
)


def cases() -> Iterator[Named]:
    """All cases; those of one number of tokens are a prefill or a decode step of a MoE layer."""
    yield "empty kernel", empty
    for tokens in TOKENS:
        for group in (128, -1):
            name = f"quantise {tokens} x {HIDDEN} by {'rows' if group < 0 else group}"
            yield name, partial(quantise, tokens, HIDDEN, group)
        rows = tokens * TOPK
        yield f"SwiGLU + quantise {rows} x {INNER}", partial(swiglu_quantise, rows, INNER)
        for step in (route, permute, unpermute):
            yield f"{step.__name__} {tokens} x {TOPK} x {HIDDEN}", partial(step, tokens)
        yield f"K write {tokens} x {DEPTH}", partial(write_keys, tokens)
        yield f"K gather {8 * tokens} x {DEPTH}", partial(gather_keys, 8, tokens)
    for rows, columns, k in LARGEST:
        yield f"top-k {rows} x {columns} k {k}", partial(largest, rows, columns, k)


def copied(num_bytes: float) -> Callable[[], object]:
    """A copy that reads and writes ``num_bytes`` in all."""
    x, y = (torch.empty(int(num_bytes) // 2, dtype=torch.int8) for _ in range(2))
    return lambda: y.copy_(x)


def empty() -> Case:
    """What every launch costs."""
    return Case(0, 0, lambda: torch.cuda._sleep(0))


def quantise(rows: int, columns: int, group: int) -> Case:
    x = torch.randn(rows, columns, dtype=BF16)
    out = (torch.empty(rows, columns, dtype=FP8), torch.empty(rows, columns // 128))
    if group < 0:
        out = (out[0], out[1][:, :1])
    num_bytes = rows * columns * 3 + out[1].numel() * 4.0
    return Case(
        0,
        num_bytes,
        lambda: quant.per_token_group_quant_fp8(x, group, out=out),
        copied(num_bytes),
    )


def swiglu_quantise(rows: int, columns: int) -> Case:
    x = torch.randn(rows, 2 * columns, dtype=BF16)
    out = (torch.empty(rows, columns, dtype=FP8), torch.empty(rows, columns // 128))
    num_bytes = rows * columns * (5 + 4 / 128)
    return Case(
        0,
        num_bytes,
        lambda: quant.silu_and_mul_quant_fp8(x, round_first=True, out=out),
        copied(num_bytes),
    )


def routed(tokens: int) -> tuple[torch.Tensor, torch.Tensor, moe.Routing]:
    """Hidden states, the experts of each token, and their sorted rows."""
    ids = torch.rand(tokens, EXPERTS).argsort(1)[:, :TOPK].to(torch.int32)
    hidden = torch.randn(tokens, HIDDEN, dtype=BF16)
    return hidden, ids, moe.route(ids, EXPERTS, alignment=128)


def moved(tokens: int) -> float:
    """Bytes of tokens once and of their sorted rows."""
    return tokens * (1 + TOPK) * HIDDEN * 2.0


def route(tokens: int) -> Case:
    _, ids, routing = routed(tokens)
    num_bytes = ids.numel() * 4.0 + routing.row_of.numel() * 8
    return Case(0, num_bytes, lambda: moe.route(ids, EXPERTS, alignment=128), copied(num_bytes))


def permute(tokens: int) -> Case:
    hidden, _, routing = routed(tokens)
    rows = moe.permute(hidden, routing, TOPK)
    return Case(
        0,
        moved(tokens),
        lambda: moe.permute(hidden, routing, TOPK, out=rows),
        copied(moved(tokens)),
    )


def unpermute(tokens: int) -> Case:
    hidden, _, routing = routed(tokens)
    rows, weights = moe.permute(hidden, routing, TOPK), torch.rand(tokens, TOPK)
    return Case(
        0,
        moved(tokens),
        lambda: moe.unpermute(rows, routing, weights, hidden),
        copied(moved(tokens)),
    )


def cache_of(tokens: int) -> torch.Tensor:
    """Blocks of keys, half of which hold so many."""
    return torch.zeros(2 * -(-tokens // BLOCK), BLOCK, DEPTH + 4, dtype=torch.uint8)


def write_keys(tokens: int) -> Case:
    k, cache = torch.randn(tokens, DEPTH, dtype=BF16), cache_of(tokens)
    slots = torch.randperm(cache.shape[0] * BLOCK)[:tokens]
    num_bytes = tokens * (2 * DEPTH + 8 + DEPTH + 4.0)
    return Case(
        0,
        num_bytes,
        lambda: indexer_cache.quant_and_write_k(k, cache, slots),
        copied(num_bytes),
    )


def gather_keys(requests: int, tokens: int) -> Case:
    total, cache = requests * tokens, cache_of(requests * max(tokens, BLOCK))
    blocks = torch.randperm(cache.shape[0], dtype=torch.int32)[: cache.shape[0] // 2]
    table, lens = blocks.view(requests, -1), torch.full((requests,), tokens, dtype=torch.int32)
    codes, scales = torch.empty(total, DEPTH, dtype=FP8), torch.empty(total)
    num_bytes = total * (DEPTH + 4) * 2.0
    return Case(
        0,
        num_bytes,
        lambda: indexer_cache.gather_k(cache, table, lens, out_k=codes, out_scale=scales),
        copied(num_bytes),
    )


def largest(rows: int, columns: int, k: int) -> Case:
    logits = torch.randn(rows, columns)
    lengths = torch.full((rows,), columns, dtype=torch.int32)
    out = torch.empty(rows, k, dtype=torch.int32)
    num_bytes = rows * (columns + k) * 4.0
    return Case(
        0,
        num_bytes,
        lambda: top_k(logits, lengths, k, out=out),
        copied(num_bytes),
    )

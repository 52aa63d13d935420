"""The kernels around the GEMMs, which only move memory: their peer is a copy of as many bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from gpu_timing import Case, Named

from mate_plugin.kernels import moe, quant
from mate_plugin.kernels.topk import top_k

BF16 = torch.bfloat16
HIDDEN, INNER, TOPK, EXPERTS = 7168, 2048, 8, 256
TOKENS = (128, 4096, 16384)
LARGEST = ((64, 65536, 2048), (2048, 8192, 2048))


def cases() -> Iterator[Named]:
    """All cases; those of one number of tokens are a prefill or a decode step of a MoE layer."""
    for tokens in TOKENS:
        yield f"quantise {tokens} x {HIDDEN}", partial(quantise, tokens, HIDDEN)
        rows = tokens * TOPK // 4
        yield f"SwiGLU + quantise {rows} x {INNER}", partial(swiglu_quantise, rows, INNER)
        for step in (route, permute, unpermute):
            name = f"{step.__name__} {tokens // 2} x {TOPK} x {HIDDEN}"
            yield name, partial(step, tokens // 2)
    for rows, columns, k in LARGEST:
        yield f"top-k {rows} x {columns} k {k}", partial(largest, rows, columns, k)


def copied(num_bytes: float) -> Callable[[], object]:
    """A copy that reads and writes ``num_bytes`` in all."""
    x, y = (torch.empty(int(num_bytes) // 2, dtype=torch.int8) for _ in range(2))
    return lambda: y.copy_(x)


def quantise(rows: int, columns: int) -> Case:
    x = torch.randn(rows, columns, dtype=BF16)
    out = (torch.empty(rows, columns).to(torch.float8_e4m3fn), torch.empty(rows, columns // 128))
    num_bytes = rows * columns * (3 + 4 / 128)
    return Case(
        0,
        num_bytes,
        lambda: quant.per_token_group_quant_fp8(x, out=out),
        copied(num_bytes),
    )


def swiglu_quantise(rows: int, columns: int) -> Case:
    x = torch.randn(rows, 2 * columns, dtype=BF16)
    num_bytes = rows * columns * (5 + 4 / 128)
    return Case(
        0,
        num_bytes,
        lambda: quant.silu_and_mul_quant_fp8(x, round_first=True),
        copied(num_bytes),
    )


def routed(tokens: int) -> tuple[torch.Tensor, torch.Tensor, moe.Routing]:
    """Hidden states, the experts of each token, and their sorted rows."""
    ids = torch.rand(tokens, EXPERTS).argsort(1)[:, :TOPK].to(torch.int32)
    hidden = torch.randn(tokens, HIDDEN, dtype=BF16)
    return hidden, ids, moe.route(ids, EXPERTS, alignment=128)


def moved(tokens: int) -> float:
    """Bytes of tokens once and of their sorted rows: the L2 cache has a token for its other
    experts."""
    return tokens * (1 + TOPK) * HIDDEN * 2.0


def route(tokens: int) -> Case:
    _, ids, _ = routed(tokens)
    return Case(0, tokens * TOPK * 12.0, lambda: moe.route(ids, EXPERTS, alignment=128))


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

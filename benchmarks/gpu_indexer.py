"""The lightning indexer's scores beside DeepGEMM."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from gpu_timing import Case, Named, cosine_distance

from mate_plugin.kernels import deep_gemm, library
from mate_plugin.kernels.indexer_cache import quant_and_write_k

DEPTH, BLOCK = 128, 64
# (requests, draft tokens, context, about)
PAGED = ((64, 1, 8192), (64, 2, 8192), (128, 1, 32768), (256, 1, 8192), (4, 1, 65536))
# (query rows, keys, heads)
FLAT = ((2048, 8192, 64), (4096, 32768, 64), (2048, 65536, 32))


def cases(peer: Any | None) -> Iterator[Named]:
    """All cases; ``peer`` is the module deep_gemm or None."""
    for batch, next_n, context in PAGED:
        yield (
            f"paged {batch} x {next_n} ctx ~{context}",
            partial(paged, batch, next_n, context, peer),
        )
    for rows, tokens, heads in FLAT:
        yield f"flat {rows} x {tokens} H{heads}", partial(flat, rows, tokens, heads, peer)


def codes(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16).to(torch.float8_e4m3fn)


def paged(batch: int, next_n: int, context: int, peer: Any | None, heads: int = 64) -> Case:
    lens_list = (context * (0.7 + 0.6 * torch.rand(batch, device="cpu"))).int().tolist()
    lens = torch.tensor(lens_list, dtype=torch.int32)
    most = max(lens_list)
    width = -(-most // BLOCK)
    num_blocks = sum(-(-length // BLOCK) for length in lens_list)
    cache = torch.zeros(num_blocks, BLOCK, 1, DEPTH + 4, dtype=torch.uint8)
    # In pieces: all keys at once would not fit beside the cache.
    for first in range(0, num_blocks, 4096):
        last = min(first + 4096, num_blocks)
        slots = torch.arange(first * BLOCK, last * BLOCK)
        keys = torch.randn(len(slots), DEPTH, dtype=torch.bfloat16)
        quant_and_write_k(keys, cache, slots, ue8m0=False)
    order = torch.randperm(num_blocks).to(torch.int32)
    table = torch.zeros(batch, width, dtype=torch.int32)
    taken = 0
    for request, length in enumerate(lens_list):
        count = -(-length // BLOCK)
        table[request, :count] = order[taken : taken + count]
        taken += count
    q = codes(batch, next_n, heads, DEPTH)
    head_weights = torch.randn(batch * next_n, heads)
    schedule = deep_gemm.get_paged_mqa_logits_metadata(lens, BLOCK)
    arguments = (q, cache, head_weights, lens, table)
    # DeepGEMM wants the length that each draft token sees.
    seen = (lens[:, None] - next_n + 1 + torch.arange(next_n)).to(torch.int32)
    visible = torch.arange(most) < seen.view(-1, 1)
    run = None
    ours: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []

    def call() -> None:
        ours[:] = [deep_gemm.fp8_paged_mqa_logits(*arguments, schedule, most, False)]

    if peer is not None:
        theirs_schedule = peer.get_paged_mqa_logits_metadata(
            seen, BLOCK, library.processors(q.device)
        )
        theirs_arguments = (q, cache, head_weights, seen, table)

        def run() -> None:
            theirs[:] = [peer.fp8_paged_mqa_logits(*theirs_arguments, theirs_schedule, most, False)]

    return Case(
        2.0 * sum(lens_list) * next_n * heads * DEPTH,
        sum(lens_list) * (DEPTH + 4 + 4.0 * next_n) + q.numel() + 4 * head_weights.numel(),
        call,
        run,
        lambda: cosine_distance(ours[0][visible], theirs[0][:, :most][visible]),
    )


def flat(rows: int, tokens: int, heads: int, peer: Any | None) -> Case:
    """Causal: the rows are the last ones of the tokens."""
    q, k, scale = codes(rows, heads, DEPTH), codes(tokens, DEPTH), torch.rand(tokens) + 0.5
    head_weights = torch.randn(rows, heads)
    first = torch.zeros(rows, dtype=torch.int32)
    end = torch.arange(tokens - rows + 1, tokens + 1, dtype=torch.int32)
    arguments = (q, (k, scale), head_weights, first, end)
    out = torch.zeros(rows, tokens)
    pairs = float(end.double().sum())
    theirs: list[torch.Tensor] = []
    run = None
    if peer is not None:

        def run() -> None:
            theirs[:] = [peer.fp8_mqa_logits(*arguments, clean_logits=False)]

    def differ() -> float:
        some = slice(0, rows, max(1, rows // 64))
        visible = torch.arange(tokens) < end[some, None]
        return cosine_distance(out[some][visible], theirs[0][some, :tokens][visible])

    return Case(
        2.0 * pairs * heads * DEPTH,
        tokens * (DEPTH + 4.0) + q.numel() + 4 * pairs,
        lambda: deep_gemm.fp8_mqa_logits(*arguments, clean_logits=False, out=out),
        run,
        differ,
    )

"""Batches as SGLang describes them to an attention backend, with pages in any order."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch


class Mode:
    """In the place of SGLang's ForwardMode, for tests without it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def is_decode(self) -> bool:
        return self.name == "decode"

    def is_idle(self) -> bool:
        return self.name == "idle"

    def is_decode_or_idle(self) -> bool:
        return self.name in ("decode", "idle")


@dataclass
class Scene:
    """A ForwardBatch, the pool's table of cache rows, and what was meant by them.

    pages: cache pages in all. rows: for each request, the cache row of each of its tokens.
    """

    forward_batch: Any
    req_to_token: torch.Tensor
    page_size: int
    pages: int
    rows: list[list[int]]
    counts: list[int]

    def tokens(self) -> list[tuple[int, int]]:
        """(request, tokens it may look at) of each token of the step, in order."""
        return [
            (r, len(rows) - count + i + 1)
            for r, (rows, count) in enumerate(zip(self.rows, self.counts, strict=True))
            for i in range(count)
        ]


def scene(
    mode: Any,
    lens: list[int],
    counts: list[int] | None = None,
    page_size: int = 64,
    padding: int = 0,
    seed: int = 0,
) -> Scene:
    """Requests of ``lens`` tokens, the last ``counts`` of each new; None is a step of decoding.

    Page 0 belongs to nobody, as in SGLang's pools. Padding is written there.
    """
    chance = torch.Generator().manual_seed(seed)
    needed = [-(-length // page_size) for length in lens]
    pages = sum(needed) + 2
    free = (torch.randperm(pages - 1, generator=chance) + 1).tolist()
    # Requests sit in any rows of the pool's table, whose other entries are stale.
    pool_rows = torch.randperm(len(lens) + 3, generator=chance)[: len(lens)]
    table = torch.full((len(lens) + 3, max(lens, default=0) + 5), 10**6, dtype=torch.int32)
    rows = []
    for where, length, count in zip(pool_rows.tolist(), lens, needed, strict=True):
        own = [free.pop() for _ in range(count)]
        rows.append([own[t // page_size] * page_size + t % page_size for t in range(length)])
        table[where, :length] = torch.tensor(rows[-1], dtype=torch.int32)
    new = [1] * len(lens) if counts is None else counts
    written = [row for own, count in zip(rows, new, strict=True) for row in own[-count:]]
    seq_lens = torch.tensor(lens, dtype=torch.int64)
    extend = None if counts is None else torch.tensor(counts, dtype=torch.int32)
    forward_batch = SimpleNamespace(
        forward_mode=mode,
        batch_size=len(lens),
        seq_lens=seq_lens,
        req_pool_indices=pool_rows,
        out_cache_loc=torch.tensor(written + [0] * padding, dtype=torch.int64),
        extend_seq_lens=extend,
        extend_prefix_lens=None if extend is None else seq_lens.int() - extend,
        encoder_lens=None,
        moe_num_token_non_padded=None,
    )
    return Scene(forward_batch, table, page_size, pages, rows, new)


def part_of(made: Scene, mode: Any, lens: list[int], counts: list[int] | None) -> Scene:
    """A step of the same requests and pages that ends at ``lens``."""
    whole = made.forward_batch
    new = counts or [1] * len(lens)
    rows = [own[:length] for own, length in zip(made.rows, lens, strict=True)]
    written = [row for own, count in zip(rows, new, strict=True) for row in own[-count:]]
    seq_lens = torch.tensor(lens)
    extend = None if counts is None else torch.tensor(counts, dtype=torch.int32)
    changes = {
        "forward_mode": mode,
        "seq_lens": seq_lens,
        "out_cache_loc": torch.tensor(written),
        "extend_seq_lens": extend,
        "extend_prefix_lens": None if extend is None else seq_lens.int() - extend,
    }
    batch = SimpleNamespace(**vars(whole) | changes)
    return Scene(batch, made.req_to_token, made.page_size, made.pages, rows, new)

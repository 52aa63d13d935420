"""What a step of SGLang computes, read from its ForwardBatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mate_plugin.indexer.batch import Batch, request_of_token


@dataclass
class Step(Batch):
    """A batch, and what SGLang's indexer asks of it.

    seen: int32 (T,), tokens that each token of the step may look at, itself included.
    new_tokens: tokens of each request in this step.
    """

    seen: torch.Tensor
    new_tokens: list[int]


def build_step(forward_batch: Any, req_to_token: torch.Tensor, page_size: int) -> Step:
    """The step that a ForwardBatch describes; ``req_to_token`` int32 (requests, max_tokens) holds
    the cache row of each token of each request, in pages of ``page_size`` rows."""
    seq_lens = forward_batch.seq_lens.to(torch.int32)
    if forward_batch.forward_mode.is_decode_or_idle():
        counts = torch.ones_like(seq_lens)
    else:
        counts = forward_batch.extend_seq_lens.to(torch.int32)
    starts = torch.zeros(counts.numel() + 1, dtype=torch.int32)
    torch.cumsum(counts, 0, out=starts[1:])
    slots = forward_batch.out_cache_loc
    owner = request_of_token(starts, slots.numel())
    # Past the last request, if there is one, may be padding: its -1 reads the entry appended here.
    of_token = owner.long()
    before = torch.nn.functional.pad(seq_lens - counts, (0, 1))[of_token]
    seen = before + torch.arange(1, slots.numel() + 1, dtype=torch.int32) - starts[of_token]
    longest = int(seq_lens.max()) if seq_lens.numel() else 0
    rows = req_to_token[forward_batch.req_pool_indices, :longest]
    return Step(
        query_start_loc=starts,
        seq_lens=seq_lens,
        block_table=(rows[:, ::page_size] // page_size).to(torch.int32).contiguous(),
        slot_mapping=slots.to(torch.int64),
        request_of_token=owner,
        seen=torch.where(owner < 0, 0, seen),
        new_tokens=counts.tolist(),
    )

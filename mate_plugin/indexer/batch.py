"""What one step of an engine computes, in the form that the kernels of sparse attention take."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Batch:
    """Requests one after the other in a flat row of T tokens: prompts, parts of prompts, single
    tokens, or all of them.

    query_start_loc: int32 (requests + 1,), first token of each request; the last entry is T.
    seq_lens: int32 (requests,), tokens of each request, those of this step included.
    block_table: int32 (requests, max_blocks), blocks of the cache in the order of the tokens.
    slot_mapping: int64 (T,), where the cache row of each token goes; -1 is nowhere.
    request_of_token: int32 (T,).
    """

    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    slot_mapping: torch.Tensor
    request_of_token: torch.Tensor


def request_of_token(query_start_loc: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """int32 (num_tokens,): the request of each token, -1 past the last request's."""
    counts = query_start_loc[1:] - query_start_loc[:-1]
    requests = torch.arange(counts.numel(), dtype=torch.int32)
    owned = requests.repeat_interleave(counts)
    padding = num_tokens - owned.numel()
    return torch.nn.functional.pad(owned, (0, padding), value=-1) if padding else owned

"""Plain-torch oracles of the lightning indexer, in float64 from the operands' exact values."""

from __future__ import annotations

import torch


def scores(
    q: torch.Tensor, k: torch.Tensor, k_scale: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Logits of every query row against every token, float64 (rows, tokens).

    Args:
        q: (rows, heads, D).
        k: (tokens, D).
        k_scale: (tokens,).
        weights: (rows, heads).
    """
    products = torch.einsum("rhd,td->rht", _wide(q), _wide(k))
    weighted = (_wide(weights)[:, :, None] * torch.relu(products)).sum(dim=1)
    return weighted * _wide(k_scale)


def split_cache(fused_kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 rows (num_blocks, block, D) and float32 scales (num_blocks, block) of a fused K cache."""
    num_blocks, block, _, width = fused_kv_cache.shape
    flat = fused_kv_cache.reshape(num_blocks, block * width)
    codes = flat[:, : block * (width - 4)].contiguous().view(torch.float8_e4m3fn)
    scales = flat[:, block * (width - 4) :].contiguous().view(torch.float32)
    return codes.view(num_blocks, block, width - 4), scales


def visible_lens(context_lens: torch.Tensor, next_n: int) -> torch.Tensor:
    """Number of tokens that each query row sees, (batch, next_n); 0 and below is none."""
    if context_lens.dim() == 2:
        return context_lens.long()
    return context_lens.long()[:, None] - next_n + 1 + torch.arange(next_n)


def paged_mqa_logits(
    q: torch.Tensor,
    fused_kv_cache: torch.Tensor,
    weights: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
    max_context_len: int,
    clean_value: float = float("-inf"),
) -> torch.Tensor:
    """What ``fp8_paged_mqa_logits`` with ``clean_logits`` computes, float64."""
    batch, next_n, heads, _ = q.shape
    codes, scales = split_cache(fused_kv_cache)
    codes = codes.float()  # older releases cannot index FP8
    lens = visible_lens(context_lens, next_n).clamp(min=0)
    logits = torch.full((batch, next_n, max_context_len), clean_value, dtype=torch.float64)
    for b in range(batch):
        longest = int(lens[b].max()) if next_n else 0
        used = block_table[b, : -(-longest // codes.shape[1])].long()
        k = codes[used].flatten(0, 1)[:longest]
        k_scale = scales[used].flatten()[:longest]
        all_scores = scores(q[b], k, k_scale, weights.view(batch, next_n, heads)[b])
        for j in range(next_n):
            logits[b, j, : lens[b, j]] = all_scores[j, : lens[b, j]]
    return logits.view(batch * next_n, max_context_len)


def ragged_logits(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    weights: torch.Tensor,
    query_start_loc: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor,
) -> list[torch.Tensor]:
    """The logits that each query row of ``index_topk`` sees, float64 (tokens,); none of padding."""
    if kv_cache.dim() == 3:
        kv_cache = kv_cache.unsqueeze(2)
    starts = query_start_loc.tolist()
    rows = [torch.empty(0, dtype=torch.float64)] * q.shape[0]
    for b, length in enumerate(context_lens.tolist()):
        first, end = starts[b], starts[b + 1]
        logits = paged_mqa_logits(
            q[None, first:end],
            kv_cache,
            weights[first:end],
            context_lens[b : b + 1],
            block_table[b : b + 1],
            max(length, 0),
        )
        for row in range(first, end):
            rows[row] = logits[row - first, : max(0, length - end + row + 1)]
    return rows


def index_topk(logits: list[torch.Tensor], k: int) -> torch.Tensor:
    """What ``index_topk`` selects from the logits of each row: larger ones first, then earlier."""
    out = torch.full((len(logits), k), -1, dtype=torch.int32)
    for row, values in enumerate(logits):
        best = torch.sort(values, descending=True, stable=True).indices[:k]
        out[row, : len(best)] = best.sort().values.int()
    return out


def mqa_logits(
    q: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
    cu_seq_len_k_start: torch.Tensor,
    cu_seq_len_k_end: torch.Tensor,
    max_seqlen_k: int = 0,
    clean_value: float = float("-inf"),
) -> torch.Tensor:
    """What ``fp8_mqa_logits`` computes, float64, ``clean_value`` outside the visible range."""
    k, k_scale = kv
    all_scores = scores(q, k, k_scale.flatten(), weights)
    columns = max_seqlen_k or k.shape[0]
    logits = torch.full((q.shape[0], columns), clean_value, dtype=torch.float64)
    for row in range(q.shape[0]):
        start = int(cu_seq_len_k_start[row])
        end = max(start, int(cu_seq_len_k_end[row]))
        shift = start if max_seqlen_k else 0
        logits[row, start - shift : end - shift] = all_scores[row, start:end]
    return logits


def paged_mqa_logits_metadata(
    context_lens: torch.Tensor, block_kv: int, num_mps: int
) -> torch.Tensor:
    """What ``get_paged_mqa_logits_metadata`` computes, from the work list written out."""
    longest = context_lens if context_lens.dim() == 1 else context_lens.amax(dim=1)
    work = [
        (request, segment)
        for request, length in enumerate(longest.tolist())
        for segment in range(-(-max(length, 0) // (4 * block_kv)))
    ]
    least, extra = divmod(len(work), num_mps)
    rows, start = [], 0
    for processor in range(num_mps + 1):
        rows.append(work[start] if start < len(work) else (len(longest), 0))
        start += least + (processor < extra)
    return torch.tensor(rows, dtype=torch.int32)


def _wide(x: torch.Tensor) -> torch.Tensor:
    # Every FP8 value is exact in float32; older releases convert FP8 to float32 only.
    return x.float().double()

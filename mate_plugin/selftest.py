"""A second of work on random data: one kernel of each family against its plain-torch reference.

Kernels are those of torch's default device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mate_plugin.kernels import deep_gemm, gemm, index_topk, indexer_cache, sparse_mla
from mate_plugin.kernels.reference import gemm as reference

# Results are bfloat16: half a unit in the last place is 2**-9 of a value.
TOLERANCE = 5e-3
EXPERTS, ROWS, N, K = 4, 48, 320, 384


def cases(device: str = "cpu") -> list[tuple[str, Callable[[], float]]]:
    """Name and test of each family with kernels on ``device``; a test returns its largest error
    over the largest value."""
    families = [
        ("grouped fp8", _grouped_fp8),
        ("grouped fp8 x bf16", _grouped_w8a16),
        ("dense fp8", _dense_fp8),
        ("paged logits", _paged_logits),
    ]
    return families if device != "cpu" else [*families, ("sparse attention", _sparse_attention)]


def _grouped_fp8() -> float:
    a, b, experts = _fp8(ROWS, K), _weights(EXPERTS), _experts()
    out = torch.zeros(ROWS, N, dtype=torch.bfloat16)
    gemm.ragged_m_moe_gemm_8bit(a, b, experts, out)
    return _error(out, reference.ragged_m(a, b, experts.long()))


def _grouped_w8a16() -> float:
    a, b, experts = _random(ROWS, K).to(torch.bfloat16), _weights(EXPERTS), _experts()
    out = torch.zeros(ROWS, N, dtype=torch.bfloat16)
    gemm.ragged_m_moe_gemm_w8a16(a, b, experts, out)
    return _error(out, reference.ragged_m(a, b, experts.long()))


def _dense_fp8() -> float:
    a, (weights, scales) = _fp8(ROWS, K), _weights(1)
    b = (weights[0], scales[0])
    return _error(gemm.gemm_fp8_nt_groupwise(a[0], b[0], a[1], b[1]), reference.dense(a, b))


def _paged_logits() -> float:
    """Two requests over shuffled blocks of 64 keys; the formula is written out here."""
    heads, dim, block, lengths = 8, 128, 64, (100, 64)
    q = _random(2, 1, heads, dim).to(torch.float8_e4m3fn)
    weights = _random(2, heads)
    keys = _random(4, block, dim).to(torch.float8_e4m3fn)
    scales = _random(4, block).abs() + 0.1
    parts = [keys.view(torch.uint8).flatten(1), scales.view(torch.uint8)]
    cache = torch.cat(parts, dim=1).view(4, block, 1, dim + 4)
    table = torch.tensor([[2, 0], [3, 1]], dtype=torch.int32)
    context_lens = torch.tensor(lengths, dtype=torch.int32)
    schedule = deep_gemm.get_paged_mqa_logits_metadata(context_lens, block, 0)
    found = deep_gemm.fp8_paged_mqa_logits(
        q, cache, weights, context_lens, table, schedule, 2 * block, True
    )
    wide = keys.float() * scales[..., None]
    worst = 0.0
    for row, length in enumerate(lengths):
        visible = wide[table[row].long()].flatten(0, 1)[:length].double()
        scores = (q[row, 0].double() @ visible.T).relu()
        worst = max(worst, _error(found[row, :length], weights[row].double() @ scores))
        if not torch.isneginf(found[row, length:]).all():
            return float("inf")
    return worst


def _sparse_attention() -> float:
    """The last tokens of one request: its keys are written, tokens selected and attended to."""
    length, rows, heads, dim, block, k, depth, width = 150, 5, 4, 64, 64, 16, 96, 64
    keys, queries = _random(length, dim), _random(rows, heads, dim).to(torch.float8_e4m3fn)
    weights = _random(rows, heads).abs()
    table = torch.tensor([[2, 0, 3]], dtype=torch.int32)
    slots = (table[0, :, None] * block + torch.arange(block)).flatten()[:length]
    cache = torch.zeros(4, block, dim + 4, dtype=torch.uint8)
    indexer_cache.quant_and_write_k(keys, cache, slots)
    starts = torch.tensor([0, rows], dtype=torch.int32)
    lens = torch.tensor([length], dtype=torch.int32)
    operands = (queries, cache, weights, starts, lens, table)
    found = index_topk.index_topk(*operands, k, budget=1 << 20)

    latents = _random(4, block, depth).to(torch.bfloat16)
    q = _random(rows, heads, depth).to(torch.bfloat16)
    requests = torch.zeros(rows, dtype=torch.int32)
    out = sparse_mla.sparse_mla(q, latents, found, table, requests, width, 0.1)

    scale = torch.exp2((keys.abs().amax(1) / 448).log2().ceil())
    codes = (keys / scale[:, None]).to(torch.float8_e4m3fn).double()
    stored = latents.flatten(0, 1)[slots].double()
    worst = 0.0
    for row in range(rows):
        seen = length - rows + row + 1
        dots = (queries[row].double() @ codes[:seen].T).relu()
        scores = (weights[row].double() @ dots) * scale[:seen].double()
        best = scores.topk(k).indices.sort().values
        if found[row].tolist() != best.tolist():
            return float("inf")
        attention = (q[row].double() @ stored[best].T * 0.1).softmax(1)
        worst = max(worst, _error(out[row], attention @ stored[best, :width]))
    return worst


def _random(*shape: int) -> torch.Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(sum(shape))
    return torch.randn(shape, generator=generator)


def _fp8(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    scale = _random(rows, -(-columns // 128)).abs() + 0.1
    return (_random(rows, columns) * 8).to(torch.float8_e4m3fn), scale


def _weights(experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    scale = _random(experts, -(-N // 128), -(-K // 128)).abs() + 0.1
    return (_random(experts, N, K) * 8).to(torch.float8_e4m3fn), scale


def _experts() -> torch.Tensor:
    """Every third row belongs to nobody."""
    rows = torch.arange(ROWS, dtype=torch.int32)
    return torch.where(rows % 3 == 0, -1, rows % EXPERTS).to(torch.int32)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())

"""The GEMM family beside DeepGEMM: sizes of DeepSeek-V3's layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from gpu_timing import Case, Named, cosine_distance

from mate_plugin.kernels import gemm
from mate_plugin.kernels.quant import per_token_group_quant_fp8

DENSE = ((128, 4096, 7168), (4096, 24576, 1536), (4096, 7168, 16384), (4096, 4096, 7168))
LAYERS = ((4096, 7168), (7168, 2048))
# (experts, rows of each, about)
CONTIGUOUS = ((4, 8192), (8, 4096), (32, 256), (64, 64))
# (experts, room for rows, rows in use, about)
MASKED = ((6, 1024, 768), (32, 256, 192), (32, 64, 20))
ALIGNMENT = 128


def cases(peer: Any | None) -> Iterator[Named]:
    """All cases; ``peer`` is the module deep_gemm or None."""
    for m, n, k in DENSE:
        yield f"dense m {m} n {n} k {k}", partial(dense, m, n, k, peer)
    for experts, rows in CONTIGUOUS:
        for n, k in LAYERS:
            name = f"contiguous {experts} x ~{rows} n {n} k {k}"
            yield name, partial(contiguous, experts, rows, n, k, peer)
    for experts, room, rows in MASKED:
        for n, k in LAYERS:
            name = f"masked {experts} x ~{rows} (max {room}) n {n} k {k}"
            yield name, partial(masked, experts, room, rows, n, k, peer)


def activations(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return per_token_group_quant_fp8(torch.randn(shape, dtype=torch.bfloat16))


def weights(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    *experts, n, k = shape
    codes = torch.randn(shape, dtype=torch.bfloat16).to(torch.float8_e4m3fn)
    return codes, torch.rand(*experts, n // 128, k // 128) + 0.5


def for_peer(a: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of activations in the order that DeepGEMM would bring them into at each call."""
    codes, scale = a
    *outer, rows, blocks = scale.shape
    room = torch.zeros(*outer, blocks, -(-rows // 4) * 4)
    turned = room.transpose(-1, -2)[..., :rows, :]
    turned.copy_(scale)
    return codes, turned


def about(rows: int, experts: int, most: int | None = None) -> list[int]:
    """Counts from 0.7 to 1.3 times ``rows``."""
    counts = (rows * (0.7 + 0.6 * torch.rand(experts, device="cpu"))).int().tolist()
    return [min(count, most) for count in counts] if most else counts


def traffic(rows: int, experts: int, n: int, k: int) -> float:
    """Bytes that must move: operands once, bf16 results once."""
    return rows * k + experts * n * k + rows * n * 2 + 4 * (rows + experts * n / 128) * k / 128


def dense(m: int, n: int, k: int, peer: Any | None) -> Case:
    a, b = activations(m, k), weights(n, k)
    ours, theirs = (torch.empty(m, n, dtype=torch.bfloat16) for _ in range(2))
    turned = for_peer(a)
    return Case(
        2.0 * m * n * k,
        traffic(m, 1, n, k),
        lambda: gemm.gemm_fp8_nt_groupwise(a[0], b[0], a[1], b[1], out=ours),
        peer and (lambda: peer.fp8_gemm_nt(turned, b, theirs)),
        lambda: cosine_distance(ours, theirs),
    )


def contiguous(experts: int, rows: int, n: int, k: int, peer: Any | None) -> Case:
    counts = about(rows, experts)
    layout: list[torch.Tensor] = []
    for expert, count in enumerate(counts):
        ids = torch.full((-(-count // ALIGNMENT) * ALIGNMENT,), -1, dtype=torch.int32)
        ids[:count] = expert
        layout.append(ids)
    ids = torch.cat(layout)
    used = ids >= 0
    a, b = activations(len(ids), k), weights(experts, n, k)
    turned = for_peer(a)
    ours, theirs = (torch.zeros(len(ids), n, dtype=torch.bfloat16) for _ in range(2))
    return Case(
        2.0 * sum(counts) * n * k,
        traffic(sum(counts), experts, n, k),
        lambda: gemm.ragged_m_moe_gemm_8bit(a, b, ids, ours, alignment_m=ALIGNMENT),
        peer and (lambda: peer.m_grouped_fp8_gemm_nt_contiguous(turned, b, theirs, ids)),
        lambda: cosine_distance(ours[used], theirs[used]),
    )


def masked(experts: int, room: int, rows: int, n: int, k: int, peer: Any | None) -> Case:
    counts = about(rows, experts, room)
    info = torch.tensor(counts, dtype=torch.int32)
    used = torch.arange(room) < info[:, None]
    a, b = activations(experts, room, k), weights(experts, n, k)
    turned = for_peer(a)
    ours, theirs = (torch.zeros(experts, room, n, dtype=torch.bfloat16) for _ in range(2))
    # Its name differs between builds of DeepGEMM.
    names = ("m_grouped_fp8_gemm_nt_masked", "fp8_m_grouped_gemm_nt_masked")
    other = next((getattr(peer, name) for name in names if hasattr(peer, name)), None)
    return Case(
        2.0 * sum(counts) * n * k,
        traffic(sum(counts), experts, n, k),
        lambda: gemm.masked_moe_gemm_8bit(a, b, info, ours, expect_tokens=rows),
        other and (lambda: other(turned, b, theirs, info, rows)),
        lambda: cosine_distance(ours[used], theirs[used]),
    )

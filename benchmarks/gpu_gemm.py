"""The GEMM family beside DeepGEMM: sizes of DeepSeek-V3's layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from gpu_timing import Case, Named, cosine_distance

from mate_plugin.kernels import gemm
from mate_plugin.kernels.quant import per_token_group_quant_fp8

DENSE = ((4096, 24576, 1536), (4096, 7168, 16384), (4096, 4096, 7168))
# Linear layers of a decode step.
FEW_ROWS = (1, 16, 64, 128, 256)
LINEAR = ((4096, 7168), (7168, 16384), (2112, 7168), (7168, 2048))
LAYERS = ((4096, 7168), (7168, 2048))
# (experts, rows of each, about)
CONTIGUOUS = ((4, 8192), (8, 4096), (32, 256), (64, 64))
# (experts, room for rows, rows in use, about)
MASKED = ((6, 1024, 768), (32, 256, 192), (32, 64, 20))
# (groups, rows of each that are summed over, about) of LAYERS' n x k results
RAGGED_K = ((4, 8192), (8, 4096))
BATCHED = ((128, 4096, 512, 128), (128, 4096, 128, 512))  # of MLA's up-projections
ALIGNMENT = 128


def cases(peer: Any | None) -> Iterator[Named]:
    """All cases; ``peer`` is the module deep_gemm or None."""
    few = ((m, n, k) for n, k in LINEAR for m in FEW_ROWS)
    for m, n, k in (*few, *DENSE):
        yield f"dense m {m} n {n} k {k}", partial(dense, m, n, k, peer)
    for experts, rows in CONTIGUOUS:
        for n, k in LAYERS:
            name = f"contiguous {experts} x ~{rows} n {n} k {k}"
            yield name, partial(contiguous, experts, rows, n, k, peer)
    for experts, room, rows in MASKED:
        for n, k in LAYERS:
            name = f"masked {experts} x ~{rows} (max {room}) n {n} k {k}"
            yield name, partial(masked, experts, room, rows, n, k, peer)
    for groups, length in RAGGED_K:
        for m, n in LAYERS:
            name = f"ragged-k {groups} x ~{length} m {m} n {n}"
            yield f"{name} fp8", partial(ragged_k_8bit, groups, length, m, n, peer, True)
            if peer:
                ready = f"{name} fp8, peer's operands turned before"
                yield ready, partial(ragged_k_8bit, groups, length, m, n, peer, False)
            yield f"{name} bf16", partial(ragged_k_16bit, groups, length, m, n, peer)
    for m, n, k in DENSE:
        yield f"1 x 128 scales m {m} n {n} k {k}", partial(columns, m, n, k, peer)
        yield f"fp8 output m {m} n {n} k {k}", partial(scaled_output, m, n, k)
    for m, n, k in ((128, *LAYERS[0]), (4096, *LAYERS[0])):
        yield f"w8a16 dense m {m} n {n} k {k}", partial(wide_rows, m, n, k)
    for batch, m, n, k in BATCHED:
        name = f"bmm bf16 {batch} x {m} n {n} k {k}"
        yield f"{name}, n-major", partial(batched, batch, m, n, k, False)
        yield f"{name}, addend", partial(batched, batch, m, n, k, True)


def activations(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return per_token_group_quant_fp8(torch.randn(shape, dtype=torch.bfloat16))


def weights(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    *experts, n, k = shape
    codes = torch.randn(shape, dtype=torch.bfloat16).to(torch.float8_e4m3fn)
    return codes, torch.rand(*experts, -(-n // 128), -(-k // 128)) + 0.5


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


def lengths_about(length: int, groups: int) -> list[int]:
    """Multiples of 128, which the peer wants."""
    return [-(-count // ALIGNMENT) * ALIGNMENT for count in about(length, groups)]


def sums_case(lengths: list[int], m: int, n: int, size: int, ours: Any, theirs: Any) -> Case:
    """``ours`` and ``theirs`` add to a tensor [groups, m, n] that they are called with."""
    rows, groups = sum(lengths), len(lengths)
    out, other = (torch.zeros(groups, m, n) for _ in range(2))

    def differ() -> float:
        ours(out.zero_())
        theirs(other.zero_())
        return cosine_distance(out, other)

    return Case(
        2.0 * rows * m * n,
        rows * (m + n) * size + 8 * out.numel(),
        lambda: ours(out),
        theirs and (lambda: theirs(other)),
        differ,
    )


def ragged_k_8bit(
    groups: int, length: int, m: int, n: int, peer: Any | None, peer_turns: bool
) -> Case:
    lengths = lengths_about(length, groups)
    info, rows = torch.tensor(lengths, dtype=torch.int32), sum(lengths)
    a, b = (torch.randn(rows, width).to(torch.float8_e4m3fn) for width in (m, n))
    sa, sb = (torch.rand(rows // ALIGNMENT, width) + 0.5 for width in (m, n))

    theirs = None
    if peer:
        # On Hopper the peer takes K-major operands only, to which torch turns the rows that a layer
        # has. Its k-grouped kernel does not start in the release measured: its products for the
        # same scales, group by group.
        starts = [0, *itertools.accumulate(lengths)]
        groups_of = [
            (slice(first, last), slice(first // ALIGNMENT, last // ALIGNMENT))
            for first, last in itertools.pairwise(starts)
        ]

        def turn() -> list[Any]:
            return [
                [(x[rows].t().contiguous(), s[blocks].t()) for x, s in ((a, sa), (b, sb))]
                for rows, blocks in groups_of
            ]

        ready = turn()

        def theirs(out: torch.Tensor) -> None:
            for (left, right), result in zip(turn() if peer_turns else ready, out, strict=True):
                peer.fp8_gemm_nt(left, right, result, c=result, recipe=(1, 1, 128))

    return sums_case(
        lengths,
        m,
        n,
        1,
        lambda out: gemm.ragged_k_moe_gemm_8bit((a, sa), (b, sb), info, out),
        theirs,
    )


def ragged_k_16bit(groups: int, length: int, m: int, n: int, peer: Any | None) -> Case:
    lengths = lengths_about(length, groups)
    info, rows = torch.tensor(lengths, dtype=torch.int32), sum(lengths)
    a, b = (torch.randn(rows, width, dtype=torch.bfloat16) for width in (m, n))
    theirs = None
    if name := getattr(peer, "k_grouped_bf16_gemm_tn_contiguous", None):
        theirs = lambda out: name(a, b, out, lengths, info, out)  # noqa: E731
    return sums_case(
        lengths, m, n, 2, lambda out: gemm.ragged_k_moe_gemm_16bit(a, b, info, out), theirs
    )


def columns(m: int, n: int, k: int, peer: Any | None) -> Case:
    a, b = activations(m, k), activations(n, k)
    turned = for_peer(a), for_peer(b)
    ours, theirs = torch.empty(m, n, dtype=torch.bfloat16), torch.zeros(m, n)
    grain = (1, 1, 128)
    return Case(
        2.0 * m * n * k,
        traffic(m, 1, n, k),
        lambda: gemm.gemm_fp8_nt_groupwise(
            a[0], b[0], a[1], b[1], scale_granularity_mnk=grain, out=ours
        ),
        # Float32 results are all it has for these scales, and it adds to them.
        peer and (lambda: peer.fp8_gemm_nt(*turned, theirs, c=theirs, recipe=grain)),
    )


def scaled_output(m: int, n: int, k: int) -> Case:
    a, b = activations(m, k), weights(n, k)
    out = torch.empty(m, n, dtype=torch.float8_e4m3fn)
    scale = torch.empty(m, n // 128)
    return Case(
        2.0 * m * n * k,
        m * k + n * k + m * n,
        lambda: gemm.gemm_fp8_nt_groupwise(a[0], b[0], a[1], b[1], out=out, output_scale=scale),
    )


def wide_rows(m: int, n: int, k: int) -> Case:
    a, b = torch.randn(m, k, dtype=torch.bfloat16), weights(n, k)
    out = torch.empty(m, n, dtype=torch.bfloat16)
    return Case(
        2.0 * m * n * k,
        2 * m * k + n * k + 2 * m * n,
        lambda: gemm.gemm_w8a16_nt_groupwise(a, *b, out=out),
    )


def batched(batch: int, m: int, n: int, k: int, adds: bool) -> Case:
    a, b = (torch.randn(batch, *shape, dtype=torch.bfloat16) for shape in ((m, k), (k, n)))
    c = torch.randn(batch, m, n, dtype=torch.bfloat16) if adds else None
    ours, theirs = (torch.empty(batch, m, n, dtype=torch.bfloat16) for _ in range(2))
    if adds:
        b = b.transpose(1, 2).contiguous().transpose(1, 2)
    return Case(
        2.0 * batch * m * n * k,
        2.0 * batch * (m * k + k * n + m * n * (2 if adds else 1)),
        lambda: gemm.bmm_fp16(a, b, torch.bfloat16, ours, c=c),
        (lambda: torch.baddbmm(c, a, b, out=theirs))
        if adds
        else lambda: torch.bmm(a, b, out=theirs),
        lambda: cosine_distance(ours, theirs),
    )

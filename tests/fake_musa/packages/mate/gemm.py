"""The vendor's GEMMs: grouped, and dense ones from :mod:`mate.dense`."""

from __future__ import annotations

from typing import Literal

import torch
from torch_musa import PROPERTIES, launch
from vendor_calls import COMPLETE, VERSION, contiguous, expect, multiples, recorded, with_backend

from mate.dense import bmm_fp8, bmm_fp16, gemm_fp8_nt_groupwise
from mate_plugin.kernels.reference import gemm as oracle

__all__ = ["bmm_fp8", "bmm_fp16", "gemm_fp8_nt_groupwise"]

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
HALF = (torch.bfloat16, torch.float16)
BLOCK = 128
SIGNAL_ROWS = 64


def blocks(size: int, block: int = BLOCK) -> int:
    return -(-size // block)


def host(operand: Tensor | Pair) -> Tensor | Pair:
    return tuple(x.cpu() for x in operand) if isinstance(operand, tuple) else operand.cpu()


def _ragged_m(
    a: Tensor | Pair,
    b: Tensor | Pair,
    info: Tensor,
    out: Tensor,
    gemm_mode: str | None,
    major_a_mode: str | None,
    major_b_mode: str | None,
    num_mp: int | None,
    alignment_m: int | None,
) -> Tensor:
    alignment_m = 128 if alignment_m is None else alignment_m
    (qa, sa), (qb, sb) = (x if isinstance(x, tuple) else (x, None) for x in (a, b))
    rows, k = qa.shape
    modes = ("per_token", "per_expert", "psum_expert")[: 2 + (VERSION >= COMPLETE)]
    assert gemm_mode in modes, f"gemm_mode: expected one of {modes}, got {gemm_mode!r}"
    # Not checked there: the mode of A has no effect, and that of B by count only.
    assert major_a_mode == "K", f"major_a_mode: got {major_a_mode!r}"
    by_count = gemm_mode == "per_expert"
    assert by_count or major_b_mode == "K", f"major_b_mode: got {major_b_mode!r}"
    if num_mp is not None:
        assert by_count or VERSION >= COMPLETE, "num_mp: has no effect in this release"
        assert num_mp > 0
    n_major = major_b_mode == "N"
    experts, n = qb.shape[0], qb.shape[2 if n_major else 1]
    multiples(BLOCK, N=n, K=k)
    wide = qa.dtype in HALF
    expect("a", qa, qa.dtype if wide else FP8, (rows, k))
    expect("b", qb, qa.dtype if wide else FP8, (experts, k, n) if n_major else (experts, n, k))
    expect("out", out, qa.dtype if wide else HALF, (rows, n))
    expect(
        "ragged_tokens_info", info, torch.int32, (rows if gemm_mode == "per_token" else experts,)
    )
    if not wide:
        shape = (blocks(k), blocks(n)) if n_major else (blocks(n), blocks(k))
        expect("scale_a", sa, torch.float32, (rows, blocks(k)))
        expect("scale_b", sb, torch.float32, (experts, *shape))
    contiguous(a=qa, b=qb, info=info, out=out, scale_a=sa, scale_b=sb)
    if not by_count:
        assert alignment_m in (128, 256), f"alignment_m: got {alignment_m}"
        assert rows % alignment_m == 0, f"rows: {rows} are no multiple of {alignment_m}"

    def run() -> None:
        of_row = oracle.expert_of_row(info.cpu(), rows, gemm_mode, alignment_m)
        theirs = qb.cpu() if wide else (qb.cpu(), sb.cpu())
        if n_major:
            theirs = tuple(x.mT for x in theirs) if isinstance(theirs, tuple) else theirs.mT
        product = oracle.ragged_m(host(a), theirs, of_row)
        kept = of_row < 0
        found = product.to(out.dtype)
        found[kept] = out.cpu()[kept]
        out.copy_(found)

    launch(run)
    return out


@recorded
@with_backend
def ragged_m_moe_gemm_8bit(
    input_a: Pair,
    input_b: Pair,
    ragged_tokens_info: Tensor,
    out: Tensor,
    gemm_mode: Literal["per_token", "psum_expert", "per_expert"] | None = "per_token",
    major_a_mode: Literal["M", "K"] | None = "K",
    major_b_mode: Literal["N", "K"] | None = "K",
    scale_granularity_mnk: tuple[int, int, int] | None = None,
    num_mp: int | None = None,
    alignment_m: int | None = None,
) -> Tensor:
    assert scale_granularity_mnk in (None, (1, BLOCK, BLOCK)), scale_granularity_mnk
    options = (gemm_mode, major_a_mode, major_b_mode, num_mp, alignment_m)
    return _ragged_m(input_a, input_b, ragged_tokens_info, out, *options)


@recorded
@with_backend
def ragged_m_moe_gemm_16bit(
    input_a: Tensor,
    input_b: Tensor,
    ragged_tokens_info: Tensor,
    out: Tensor,
    gemm_mode: Literal["per_token", "psum_expert", "per_expert"] | None = "per_token",
    major_a_mode: Literal["M", "K"] | None = "K",
    major_b_mode: Literal["N", "K"] | None = "K",
    num_mp: int | None = None,
    alignment_m: int | None = None,
) -> Tensor:
    options = (gemm_mode, major_a_mode, major_b_mode, num_mp, alignment_m)
    return _ragged_m(input_a, input_b, ragged_tokens_info, out, *options)


def _masked(
    a: Tensor | Pair,
    b: Tensor | Pair,
    counts: Tensor,
    out: Tensor,
    expect_tokens: int | None,
    enable_overlap: bool,
    signal: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor, int, int]:
    (qa, sa), (qb, sb) = (x if isinstance(x, tuple) else (x, None) for x in (a, b))
    experts, rows, k = qa.shape
    n = qb.shape[1]
    multiples(BLOCK, N=n, K=k)
    wide = qa.dtype in HALF
    expect("a", qa, qa.dtype if wide else FP8, (experts, rows, k))
    expect("b", qb, qa.dtype if wide else FP8, (experts, n, k))
    expect("out", out, qa.dtype if wide else HALF, (experts, rows, n))
    expect("masked_tokens_info", counts, torch.int32, (experts,))
    contiguous(a=qa, b=qb, counts=counts, out=out, scale_b=sb, signal=signal)
    if not wide:
        assert (*sa.shape, sa.dtype) == (experts, rows, blocks(k), torch.float32)
        assert sa.is_contiguous() or sa.mT.is_contiguous(), f"scale_a: strides {sa.stride()}"
        expect("scale_b", sb, torch.float32, (experts, blocks(n), blocks(k)))
    tile_m, tile_n = 128 if (expect_tokens or 0) <= 128 else 256, 256
    if enable_overlap and signal is None:
        size = experts * blocks(rows, SIGNAL_ROWS)
        signal = torch.zeros(size, dtype=torch.int32, device=qa.device)
    if enable_overlap:
        expect("signal", signal, torch.int32, (experts * blocks(rows, SIGNAL_ROWS),))

    def run() -> None:
        product = oracle.masked(host(a), host(b), counts.cpu()).to(out.dtype)
        found = out.cpu()
        for expert, count in enumerate(counts.tolist()):
            found[expert, :count] = product[expert, :count]
            if enable_overlap:
                first, used = expert * blocks(rows, tile_m), blocks(count, tile_m)
                signal[first : first + used] += blocks(n, tile_n)
        out.copy_(found)

    launch(run)
    return (out, signal, tile_m, blocks(n, tile_n)) if enable_overlap else out


@recorded
@with_backend
def masked_moe_gemm_8bit(
    input_a: Pair,
    input_b: Pair,
    masked_tokens_info: Tensor,
    out: Tensor,
    scale_granularity_mnk: tuple[int, int, int] | None = None,
    expect_tokens: int | None = None,
    enable_overlap: bool = False,
    signal: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, int, int]:
    assert scale_granularity_mnk in (None, (1, BLOCK, BLOCK)), scale_granularity_mnk
    options = (expect_tokens, enable_overlap, signal)
    return _masked(input_a, input_b, masked_tokens_info, out, *options)


@recorded
@with_backend
def masked_moe_gemm_16bit(
    a: Tensor,
    b: Tensor,
    masked_tokens_info: Tensor,
    out: Tensor,
    expect_tokens: int | None = None,
    enable_overlap: bool = False,
    signal: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, int, int]:
    return _masked(a, b, masked_tokens_info, out, expect_tokens, enable_overlap, signal)


def _ragged_k(
    a: Tensor | Pair,
    b: Tensor | Pair,
    counts: Tensor,
    out: Tensor,
    gemm_mode: str | None,
    major_a_mode: str | None,
    major_b_mode: str | None,
    num_mp: int | None,
) -> Tensor:
    (qa, sa), (qb, sb) = (x if isinstance(x, tuple) else (x, None) for x in (a, b))
    (k, m), n = qa.shape, qb.shape[1]
    assert (gemm_mode, major_a_mode, major_b_mode) == ("per_expert", "M", "N")
    assert num_mp is None or 0 < num_mp <= PROPERTIES.multi_processor_count
    multiples(BLOCK, M=m, N=n)
    wide = qa.dtype in HALF
    expect("a", qa, HALF if wide else FP8, (k, m))
    expect("b", qb, HALF if wide else FP8, (k, n))
    expect("ragged_tokens_info", counts, torch.int32, (None,))
    expect("out", out, torch.float32, (counts.shape[0], m, n))
    if not wide:
        expect("scale_a", sa, torch.float32, (None, m))
        expect("scale_b", sb, torch.float32, (sa.shape[0], n))
    contiguous(a=qa, b=qb, counts=counts, out=out, scale_a=sa, scale_b=sb)

    def run() -> None:
        out.add_(oracle.ragged_k(host(a), host(b), counts.cpu()).float().to(out.device))

    launch(run)
    return out


@recorded
@with_backend
def ragged_k_moe_gemm_8bit(
    input_a: Pair,
    input_b: Pair,
    ragged_tokens_info: Tensor,
    out: Tensor,
    gemm_mode: Literal["per_expert"] | None = "per_expert",
    major_a_mode: Literal["M", "K"] | None = "M",
    major_b_mode: Literal["N", "K"] | None = "N",
    scale_granularity_mnk: tuple[int, int, int] | None = None,
    num_mp: int | None = None,
) -> Tensor:
    assert scale_granularity_mnk in (None, (1, 1, BLOCK)), scale_granularity_mnk
    options = (gemm_mode, major_a_mode, major_b_mode, num_mp)
    return _ragged_k(input_a, input_b, ragged_tokens_info, out, *options)


@recorded
@with_backend
def ragged_k_moe_gemm_16bit(
    input_a: Tensor,
    input_b: Tensor,
    ragged_tokens_info: Tensor,
    out: Tensor,
    gemm_mode: Literal["per_expert"] | None = "per_expert",
    major_a_mode: Literal["M", "K"] | None = "M",
    major_b_mode: Literal["N", "K"] | None = "N",
    num_mp: int | None = None,
) -> Tensor:
    options = (gemm_mode, major_a_mode, major_b_mode, num_mp)
    return _ragged_k(input_a, input_b, ragged_tokens_info, out, *options)

# mypy: disable-error-code="valid-type"
# ruff: noqa: SIM102 (TileLang reads both sides of an "and")
"""The paged logits of the lightning indexer in TileLang.

Annotations are evaluated, so this file does without those of the future.
"""

from dataclasses import dataclass
from typing import Any

BLOCK = 64  # tokens per block of the K cache, and per step


@dataclass(frozen=True)
class Split:
    """A block of threads takes ``tokens`` of one request, ``stages`` cache blocks in flight."""

    tokens: int
    threads: int
    stages: int


def paged_mqa_logits(
    next_n: int,
    heads: int,
    depth: int,
    block_stride: int,
    lens_dims: int,
    clean: bool,
    split: Split,
    fp8: str,
) -> Any:
    """TileLang function of (q, codes, scales, weights, lens, table, out).

    ``codes`` and ``scales`` are the two parts of the cache, ``block_stride`` bytes from block to
    block.
    """
    import tilelang.language as T

    batch, num_blocks, max_blocks = (T.dynamic(x) for x in ("batch", "num_blocks", "max_blocks"))
    width, out_stride, table_stride = (
        T.dynamic(x) for x in ("width", "out_stride", "table_stride")
    )
    columns = next_n * heads

    @T.prim_func
    def paged_mqa_logits_kernel(
        q: T.Tensor((batch * columns, depth), fp8),
        codes: T.StridedTensor((num_blocks, BLOCK, depth), (block_stride, depth, 1), fp8),
        scales: T.StridedTensor((num_blocks, BLOCK), (block_stride // 4, 1), "float32"),
        weights: T.Tensor((batch, columns), "float32"),
        lens: T.Tensor((batch,) if lens_dims == 1 else (batch, next_n), "int32"),
        table: T.StridedTensor((batch, max_blocks), (table_stride, 1), "int32"),
        out: T.StridedTensor((batch * next_n, width), (out_stride, 1), "float32"),
    ):
        with T.Kernel(T.ceildiv(width, split.tokens), batch, threads=split.threads) as (part, b):
            q_tile = T.alloc_shared((columns, depth), fp8)
            k_tile = T.alloc_shared((BLOCK, depth), fp8)
            weight = T.alloc_fragment((next_n, heads), "float32")
            k_scale = T.alloc_fragment((BLOCK,), "float32")
            product = T.alloc_fragment((BLOCK, columns), "float32")
            weighted = T.alloc_fragment((BLOCK, next_n, heads), "float32")
            logit = T.alloc_fragment((BLOCK, next_n), "float32")
            longest = T.alloc_var("int32")
            steps = T.alloc_var("int32")

            if lens_dims == 1:
                longest = lens[b]
            else:
                longest = 0
                for j in T.serial(next_n):
                    longest = T.max(longest, lens[b, j])
            longest = T.min(T.min(longest, width), max_blocks * BLOCK)
            steps = T.ceildiv(T.min(T.max(longest - part * split.tokens, 0), split.tokens), BLOCK)
            # Not by a bulk copy: a block without steps would exit while that is under way.
            T.copy(q[b * columns, 0], q_tile, disable_tma=True)
            # relu(x) = (x + |x|) / 2, which is exact and keeps NaN.
            for j, h in T.Parallel(next_n, heads):
                weight[j, h] = weights[b, j * heads + h] * 0.5
            for step in T.Pipelined(steps, num_stages=split.stages):
                block = table[b, part * (split.tokens // BLOCK) + step]
                T.copy(codes[block, 0, 0], k_tile)
                for i in T.Parallel(BLOCK):
                    k_scale[i] = scales[block, i]
                T.gemm(
                    k_tile,
                    q_tile,
                    product,
                    transpose_B=True,
                    clear_accum=True,
                    policy=T.GemmWarpPolicy.FullRow,
                )
                for i, j, h in T.Parallel(BLOCK, next_n, heads):
                    weighted[i, j, h] = (
                        product[i, j * heads + h] + T.abs(product[i, j * heads + h])
                    ) * weight[j, h]
                T.reduce_sum(weighted, logit, dim=2)
                for i, j in T.Parallel(BLOCK, next_n):
                    token = part * split.tokens + step * BLOCK + i
                    seen = lens[b] - next_n + 1 + j if lens_dims == 1 else lens[b, j]
                    if token < width:
                        if token < seen:
                            out[b * next_n + j, token] = logit[i, j] * k_scale[i]
                        elif clean:
                            out[b * next_n + j, token] = -T.infinity("float32")
            if clean:
                for j in T.serial(next_n):
                    for i in T.Parallel(split.tokens):
                        token = part * split.tokens + i
                        if i >= steps * BLOCK:
                            if token < width:
                                out[b * next_n + j, token] = -T.infinity("float32")

    return paged_mqa_logits_kernel

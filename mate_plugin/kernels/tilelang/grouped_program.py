# mypy: disable-error-code="valid-type"
# ruff: noqa: SIM102 (TileLang reads both sides of an "and")
"""The grouped FP8 GEMM in TileLang.

Products of 128 of k are summed by the tensor cores, which keep fewer bits than float32, and then
scaled into float32 sums (DeepSeek-V3 technical report, "increasing accumulation precision").

Annotations are evaluated, so this file does without those of the future.
"""

from dataclasses import dataclass
from typing import Any

BLOCK = 128  # of k and n per scale

LAYOUTS = ("per_token", "psum_expert", "masked")


@dataclass(frozen=True)
class Tile:
    """What one block of threads computes; ``stages`` steps of k are in flight."""

    rows: int
    columns: int
    threads: int
    stages: int


def grouped_gemm(
    layout: str, experts: int, n: int, k: int, alignment: int, tile: Tile, fp8: str
) -> Any:
    """TileLang function of (a, sa, b, sb, info, out).

    ``a`` is (groups, rows, k), with one group for each expert where the layout is "masked", else
    one group in all; ``out`` and ``sa`` are alike.
    """
    import tilelang.language as T

    rows, groups = T.dynamic("rows"), experts if layout == "masked" else 1
    stride_group, stride_row, stride_k = (T.dynamic(f"sa_{dim}") for dim in ("group", "row", "k"))
    k_blocks, n_blocks = -(-k // BLOCK), -(-n // BLOCK)
    halvings = (experts - 1).bit_length()

    @T.prim_func
    def grouped_gemm_kernel(
        a: T.Tensor((groups, rows, k), fp8),
        sa: T.StridedTensor(
            (groups, rows, k_blocks), (stride_group, stride_row, stride_k), "float32"
        ),
        b: T.Tensor((experts, n, k), fp8),
        sb: T.Tensor((experts, n_blocks, k_blocks), "float32"),
        info: T.Tensor((rows,) if layout == "per_token" else (experts,), "int32"),
        out: T.Tensor((groups, rows, n), "bfloat16"),
    ):
        with T.Kernel(
            T.ceildiv(n, tile.columns), groups * T.ceildiv(rows, tile.rows), threads=tile.threads
        ) as (column, block):
            a_tile = T.alloc_shared((tile.rows, BLOCK), fp8)
            b_tile = T.alloc_shared((tile.columns, BLOCK), fp8)
            out_tile = T.alloc_shared((tile.rows, tile.columns), "bfloat16")
            scale = T.alloc_fragment((tile.rows,), "float32")
            part = T.alloc_fragment((tile.rows, tile.columns), "float32")
            total = T.alloc_fragment((tile.rows, tile.columns), "float32")
            group = T.alloc_var("int32")
            start = T.alloc_var("int32")
            expert = T.alloc_var("int32")
            live = T.alloc_var("int32")
            steps = T.alloc_var("int32")
            T.use_swizzle(panel_size=10)

            group = 0
            start = block * tile.rows
            expert = 0
            live = 0
            if layout == "masked":
                group = block // T.ceildiv(rows, tile.rows)
                start = block % T.ceildiv(rows, tile.rows) * tile.rows
                expert = group
                live = T.min(info[expert], rows) - start
            elif layout == "per_token":
                expert = info[start]
                if expert >= 0:
                    # Numbers that are no expert's are nobody's rows either.
                    if expert < experts:
                        live = 1
                        if start + tile.rows <= rows:
                            if info[start + tile.rows - 1] == expert:
                                live = tile.rows
            else:
                # The first expert that ends after this row, or the last one, by halving.
                for i in T.serial(halvings):
                    step = T.shift_left(1, halvings - 1 - i)
                    if expert + step < experts:
                        if info[expert + step - 1] <= start:
                            expert = expert + step
                live = T.min(info[expert], rows) - start
                if expert > 0:
                    if start < T.ceildiv(info[expert - 1], alignment) * alignment:
                        live = 0

            # A condition around the loop would be read before ``live`` is known: TileLang moves it
            # in front of what it splits into loading and multiplying warps.
            steps = T.if_then_else(live > 0, k_blocks, 0)
            T.clear(total)
            for step in T.Pipelined(steps, num_stages=tile.stages):
                T.copy(a[group, start, step * BLOCK], a_tile)
                T.copy(b[expert, column * tile.columns, step * BLOCK], b_tile)
                for i in T.Parallel(tile.rows):
                    scale[i] = (
                        sa[group, start + i, step]
                        * sb[expert, column * tile.columns // BLOCK, step]
                    )
                T.gemm(
                    a_tile,
                    b_tile,
                    part,
                    transpose_B=True,
                    clear_accum=True,
                    policy=T.GemmWarpPolicy.FullRow,
                )
                for i, j in T.Parallel(tile.rows, tile.columns):
                    total[i, j] += part[i, j] * scale[i]

            if live > 0:
                T.copy(total, out_tile)
                if live >= tile.rows:
                    T.copy(out_tile, out[group, start, column * tile.columns])
                else:
                    for i, j in T.Parallel(tile.rows, tile.columns):
                        # Rows of no token are not written.
                        if (info[start + i] == expert) if layout == "per_token" else (i < live):
                            out[group, start + i, column * tile.columns + j] = out_tile[i, j]

    return grouped_gemm_kernel

"""The published indexer functions (``mate.deep_gemm``) and GEMMs under the names of DeepGEMM.

The GEMMs take DeepGEMM's arguments. Scales are float32 and used as they are; either dimension of a
scale may be contiguous. ``compiled_dims`` is a hint for a compiler that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mate_plugin.kernels import masked, ragged_k, ragged_m
from mate_plugin.kernels.checks import contract, granularity, integer, pair
from mate_plugin.kernels.deep_gemm_args import check_bool, check_hints, check_ks, recipe_of
from mate_plugin.kernels.groupwise import nt_product
from mate_plugin.kernels.mqa_logits import (
    fp8_mqa_logits,
    fp8_paged_mqa_logits,
    get_paged_mqa_logits_metadata,
)

Pair = tuple[torch.Tensor, torch.Tensor]
Recipe = tuple[int, int, int] | None
HalfRecipe = tuple[int, int] | None

_WHERE = {"KB": "ceil_div(K, gran_k)", "NB": "ceil_div(N, gran_n)"}
_ALIGNMENT = 128

_FP8_GEMM = {
    dtype: contract(
        "batched_gemm",
        "a[0]: fp8 [M, K] rows",
        "a[1]: f32 [M, KB] major",
        "b[0]: fp8 [N, K] rows",
        "b[1]: f32 [NB, KB] major",
        f"d: {name} [M, N] out",
        f"c: {name} [M, N] rows optional inplace",
        where=_WHERE,
    )
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "f32"))
}
_CONTIGUOUS = contract(
    "ragged_m_gemm",
    "a[0]: fp8 [M, K] rows",
    "a[1]: f32 [M, KB] major",
    "b[0]: fp8 [G, N, K] rows",
    "b[1]: f32 [G, NB, KB] major",
    "d: bf16|f32 [M, N] out",
    "grouped_layout: i32 [R]",
    where=_WHERE | {"R": "G if use_psum_layout else M"},
)
_MASKED = contract(
    "masked_gemm",
    "a[0]: fp8 [G, M, K] rows",
    "a[1]: f32 [G, M, KB] major",
    "b[0]: fp8 [G, N, K] rows",
    "b[1]: f32 [G, NB, KB] major",
    "d: bf16|f32 [G, M, N] out",
    "masked_m: i32 [G]",
    where=_WHERE,
)
_K_GROUPED = contract(
    "ragged_k_gemm",
    "a[0]: fp8 [K, M] contiguous",
    "a[1]: f32 [S, M] major",
    "b[0]: fp8 [K, N] contiguous",
    "b[1]: f32 [S, N] major",
    "d: f32 [G, M, N] out",
    "grouped_layout: i32 [G]",
    "c: f32 [G, M, N] optional inplace",
)


def get_mk_alignment_for_contiguous_layout() -> int:
    """Rows to which each group of the contiguous layouts is padded (128)."""
    return _ALIGNMENT


def fp8_gemm_nt(
    a: Pair,
    b: Pair,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Recipe = None,
    recipe_a: HalfRecipe = None,
    recipe_b: HalfRecipe = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool | None = None,
) -> None:
    """``d = a @ b.T (+ c)`` of FP8 matrices.

    Args:
        a: FP8 (M, K), K contiguous, and float32 scales (M, ceil(K/128)).
        b: FP8 (N, K), K contiguous, and float32 scales (ceil(N/gn), ceil(K/128)).
        d: bfloat16 or float32 (M, N), N contiguous, written.
        c: the type and shape of ``d``, added before the rounding to it; may be ``d`` itself.
        recipe: elements per scale over (m, n, k): (1, 128, 128), which None takes, or (1, 1, 128).
        recipe_a, recipe_b: the same as (m, k) and (n, k), in the place of ``recipe``.
        compiled_dims: letters of "mnk"; no effect.
        disable_ue8m0_cast: True or None. There is no rounding of scales to powers of two, so False
            raises.

    Raises:
        TypeError, ValueError, NotImplementedError: as ``mate_plugin.kernels.gemm`` does.
    """
    (qa, sa), (qb, sb) = pair("a", a), pair("b", b)
    gran_n, gran_k, _ = recipe_of(recipe, recipe_a, recipe_b)
    check_hints(compiled_dims, disable_ue8m0_cast)
    dtype = d.dtype if isinstance(d, torch.Tensor) and d.dtype in _FP8_GEMM else torch.bfloat16
    _FP8_GEMM[dtype](qa, sa, qb, sb, d, c, gran_k, gran_n)
    nt_product(qa, qb, sa, sb, d, "blocks", False, gran_n, gran_k, c)


def m_grouped_fp8_gemm_nt_contiguous(
    a: Pair,
    b: Pair,
    d: torch.Tensor,
    grouped_layout: torch.Tensor,
    recipe: Recipe = None,
    recipe_a: HalfRecipe = None,
    recipe_b: HalfRecipe = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool | None = None,
    use_psum_layout: bool = False,
    expected_m_for_psum_layout: int | None = None,
) -> None:
    """``d[r] = a[r] @ b[g].T`` for the rows r of each group g.

    Args:
        a: FP8 (M, K), K contiguous, and float32 scales (M, ceil(K/128)).
        b: FP8 (G, N, K), K contiguous, and float32 scales (G, ceil(N/gn), ceil(K/128)).
        d: bfloat16 or float32 (M, N), N contiguous. Rows of no group stay as they are.
        grouped_layout: int32, the group of each row or -1, (M,); with ``use_psum_layout`` the end
            of each group, (G,), where group g starts at the end of g - 1 rounded up to 128.
        expected_m_for_psum_layout: rows that the caller expects per group; no effect on a CPU. Only
            with ``use_psum_layout``.
        recipe, recipe_a, recipe_b, compiled_dims, disable_ue8m0_cast: as in :func:`fp8_gemm_nt`.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`fp8_gemm_nt`.
    """
    (qa, sa), (qb, sb) = pair("a", a), pair("b", b)
    grain = recipe_of(recipe, recipe_a, recipe_b)
    check_hints(compiled_dims, disable_ue8m0_cast)
    check_bool("use_psum_layout", use_psum_layout)
    integer("expected_m_for_psum_layout", expected_m_for_psum_layout, 0)
    if expected_m_for_psum_layout is not None and not use_psum_layout:
        raise ValueError(
            "expected_m_for_psum_layout: expected None without use_psum_layout,"
            f" got {expected_m_for_psum_layout}"
        )
    _CONTIGUOUS(qa, sa, qb, sb, d, grouped_layout, grain[1], grain[0], use_psum_layout)
    mode = int(use_psum_layout)
    ragged_m.launch(
        qa,
        sa,
        qb,
        sb,
        grouped_layout,
        d,
        mode,
        False,
        grain,
        _ALIGNMENT,
        None,
        info_name="grouped_layout",
    )


def m_grouped_fp8_gemm_nt_masked(
    a: Pair,
    b: Pair,
    d: torch.Tensor,
    masked_m: torch.Tensor,
    expected_m: int,
    recipe: Recipe = None,
    recipe_a: HalfRecipe = None,
    recipe_b: HalfRecipe = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool | None = None,
) -> None:
    """``d[g, r] = a[g, r] @ b[g].T`` for the first ``masked_m[g]`` rows of each group g.

    Args:
        a: FP8 (G, M, K), K contiguous, and float32 scales (G, M, ceil(K/128)).
        b: FP8 (G, N, K), K contiguous, and float32 scales (G, ceil(N/gn), ceil(K/128)).
        d: bfloat16 or float32 (G, M, N), N contiguous. Rows past the mask stay as they are.
        masked_m: int32 (G,).
        expected_m: rows that the caller expects per group; picks tile sizes on GPUs.
        recipe, recipe_a, recipe_b, compiled_dims, disable_ue8m0_cast: as in :func:`fp8_gemm_nt`.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`fp8_gemm_nt`.
    """
    (qa, sa), (qb, sb) = pair("a", a), pair("b", b)
    grain = recipe_of(recipe, recipe_a, recipe_b)
    check_hints(compiled_dims, disable_ue8m0_cast)
    integer("expected_m", expected_m, 0, optional=False)
    _MASKED(qa, sa, qb, sb, d, masked_m, grain[1], grain[0])
    masked.launch(
        qa, sa, qb, sb, masked_m, d, d.dtype, grain, expected_m, False, None, counts_name="masked_m"
    )


def k_grouped_fp8_gemm_tn_contiguous(
    a: Pair,
    b: Pair,
    d: torch.Tensor,
    ks_cpu: Sequence[int],
    grouped_layout: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: tuple[int, int, int] = (1, 1, 128),
    compiled_dims: str = "mn",
    use_psum_layout: bool = False,
) -> None:
    """``d[g] = a_g.T @ b_g (+ c[g])``, where group g owns ``ks_cpu[g]`` rows of a and b.

    Args:
        a: FP8 (K, M), contiguous, and float32 scales (sum of ceil(ks/128), M): the blocks of 128
            rows start anew at each group.
        b: FP8 (K, N), contiguous, and float32 scales of as many rows, N wide.
        d: float32 (G, M, N), N contiguous, written.
        ks_cpu: rows of each group on the host; their sum is K.
        grouped_layout: the same numbers as an int32 tensor (G,).
        c: float32 (G, M, N), added; may be ``d`` itself.
        recipe: (1, 1, 128).
        compiled_dims: letters of "mnk"; no effect.
        use_psum_layout: False.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`fp8_gemm_nt`.
    """
    (qa, sa), (qb, sb) = pair("a", a), pair("b", b)
    granularity(recipe, {(1, 1, 128): None}, (1, 1, 128), "recipe")
    check_hints(compiled_dims, None)
    check_bool("use_psum_layout", use_psum_layout)
    if use_psum_layout:
        raise ValueError("use_psum_layout: expected False, got True")
    _K_GROUPED(qa, sa, qb, sb, d, grouped_layout, c)
    check_ks(ks_cpu, grouped_layout, qa.shape[0], sa.shape[0])
    if c is None:
        d.zero_()
    elif c is not d:
        d.copy_(c)
    ragged_k.launch(qa, sa, qb, sb, grouped_layout, d, None, counts_name="grouped_layout")


__all__ = [
    "fp8_gemm_nt",
    "fp8_mqa_logits",
    "fp8_paged_mqa_logits",
    "get_mk_alignment_for_contiguous_layout",
    "get_paged_mqa_logits_metadata",
    "k_grouped_fp8_gemm_tn_contiguous",
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_gemm_nt_masked",
]

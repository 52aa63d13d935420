"""The published groupwise GEMM, and its form for unquantised activations.

Scales of 1 x 128 and 128 x 128 blocks are those of the DeepSeek-V3 report (section 3.3).
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from mate_plugin.kernels.checks import BACKENDS, choice, contract, describe, granularity
from mate_plugin.kernels.dense import FLOATS, HALF, check_out_type, run
from mate_plugin.kernels.packing import as_rows

Triple = tuple[int, int, int]

_SCALED_BLOCK = 128

# (block of n, block of k, how B is scaled, whether A has one scale in all) per granularity.
_GROUPWISE: dict[Triple, tuple[int, int, str]] = {
    (1, 128, 128): (128, 128, "blocks"),
    (1, 1, 128): (1, 128, "blocks"),
    (1, 1, -1): (1, 0, "blocks"),
    (1, -1, -1): (0, 0, "rows"),
    (-1, -1, -1): (0, 0, "tensor"),
}
_SCALE_MAJORS: dict[str | None, bool] = {None: False, "K": False, "MN": True}


def _groupwise_contract(kind: str, mn_major: bool) -> Any:
    scale_a = "[KB, M] major" if mn_major else "[M, KB] major"
    scale_b = "[KB, NB] major" if mn_major else "[NB, KB] major"
    return contract(
        "batched_gemm",
        "a: fp8 [M, K] rows",
        "b: fp8 [N, K] rows",
        f"a_scale: f32 {'one' if kind == 'tensor' else scale_a}",
        f"b_scale: f32 {scale_b if kind == 'blocks' else 'one'}",
        "out: bf16|fp16|e4m3|f32 [M, N] out optional",
        "output_scale: f32 [M, OB] out optional",
        where={
            "KB": "ceil_div(K, gran_k)",
            "NB": "ceil_div(N, gran_n)",
            "OB": f"ceil_div(N, {_SCALED_BLOCK})",
        },
    )


_GROUPWISE_CHECKS = {
    (kind, mn): _groupwise_contract(kind, mn)
    for kind in ("blocks", "rows", "tensor")
    for mn in (False, True)
}


def gemm_fp8_nt_groupwise(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    scale_major_mode: Literal["MN", "K"] | None = None,
    mma_sm: int | None = None,
    scale_granularity_mnk: Triple | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
    output_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """``(a * a_scale) @ (b * b_scale).T`` of FP8 matrices, accumulated in float32.

    Args:
        a: e4m3fn or e5m2 (M, K), K contiguous.
        b: e4m3fn or e5m2 (N, K), K contiguous.
        a_scale: float32 (ceil(M/gm), ceil(K/gk)), either dimension contiguous.
        b_scale: float32 (ceil(N/gn), ceil(K/gk)), likewise.
        scale_major_mode: "K" (None) as above; "MN": both scales are transposed, (ceil(K/gk), ...).
        mma_sm: None or 1.
        scale_granularity_mnk: (gm, gn, gk), elements per scale, -1 for a whole dimension:
            (1, 128, 128) (None), (1, 1, 128), (1, 1, -1), (1, -1, -1) or (-1, -1, -1). A scale of
            a whole matrix is one element of any rank.
        out: bfloat16 or float16 (M, N), or float8_e4m3fn with ``output_scale``; N contiguous. None
            allocates it.
        out_dtype: type of ``out``; None is that of ``out``, else bfloat16, or float8_e4m3fn with
            ``output_scale``.
        backend: "auto", "mudnn" or "mubin": a library of the musa device, without effect elsewhere.
        output_scale: float32 (M, ceil(N/128)), **written**: the largest magnitude of each 1 x 128
            of the result over 448; ``out`` is the result divided by it.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`bmm_fp16`.
    """
    choice("backend", backend, BACKENDS)
    mn_major = choice("scale_major_mode", scale_major_mode, _SCALE_MAJORS)
    if mma_sm is not None and (isinstance(mma_sm, bool) or mma_sm != 1):
        raise ValueError(f"mma_sm: expected 1 or None, got {describe(mma_sm)}")
    gran_n, gran_k, kind = granularity(scale_granularity_mnk, _GROUPWISE, (1, 128, 128))
    allowed = HALF if output_scale is None else (torch.float8_e4m3fn,)
    if out_dtype is None:
        given = getattr(out, "dtype", None)
        out_dtype = given if given in allowed else allowed[0]
    check_out_type(out, out_dtype, allowed)
    check = _GROUPWISE_CHECKS[kind, mn_major]
    rows = as_rows(b)
    check(a, rows, a_scale, b_scale, out, output_scale, gran_k, gran_n)
    if out is None:
        out = torch.empty((a.shape[0], rows.shape[0]), dtype=out_dtype, device=a.device)
    nt_product(
        a,
        b,
        a_scale,
        b_scale,
        out,
        kind,
        mn_major,
        gran_n,
        gran_k,
        out_scale=output_scale,
        backend=backend,
    )
    return out


def nt_product(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor | None,
    b_scale: torch.Tensor,
    out: torch.Tensor,
    kind: str,
    mn_major: bool,
    gran_n: int,
    gran_k: int,
    c: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
    backend: str = "auto",
) -> None:
    """``out = (a * a_scale) @ (b * b_scale).T (+ c)`` on checked 2-D operands."""
    if mn_major and a_scale is not None and kind != "tensor":
        a_scale = a_scale.t()
    if mn_major and kind == "blocks":
        b_scale = b_scale.t()
    run(a, a_scale, b, b_scale, out, gran_n, gran_k, c, out_scale=out_scale, backend=backend)


_W8A16 = {
    kind: contract(
        "batched_gemm",
        "a: bf16|fp16|f32 [M, K] rows",
        "b: fp8 [N, K] rows",
        f"b_scale: f32 {'[NB, KB] major' if kind == 'blocks' else 'one'}",
        "out: bf16|fp16|f32 [M, N] out optional",
        where={"KB": "ceil_div(K, gran_k)", "NB": "ceil_div(N, gran_n)"},
    )
    for kind in ("blocks", "tensor")
}


def gemm_w8a16_nt_groupwise(
    a: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    scale_granularity_mnk: Triple | None = None,
) -> torch.Tensor:
    """``a @ (b * b_scale).T`` of unquantised activations and FP8 weights.

    Args:
        a: bfloat16, float16 or float32 (M, K), K contiguous.
        b: e4m3fn or e5m2 (N, K), K contiguous.
        b_scale: float32 (ceil(N/gn), ceil(K/gk)), or one element for a whole matrix.
        out: bfloat16, float16 or float32 (M, N), N contiguous; None allocates it.
        out_dtype: type of ``out``; None is that of ``out``, else that of ``a``.
        scale_granularity_mnk: as in :func:`gemm_fp8_nt_groupwise`; its part of rows has no meaning.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`bmm_fp16`.
    """
    gran_n, gran_k, kind = granularity(scale_granularity_mnk, _GROUPWISE, (1, 128, 128))
    if out_dtype is not None:
        check_out_type(out, out_dtype, FLOATS)
    kind = "blocks" if kind == "blocks" else "tensor"
    rows = as_rows(b)
    _W8A16[kind](a, rows, b_scale, out, gran_k, gran_n)
    if out is None:
        out = torch.empty((a.shape[0], rows.shape[0]), dtype=out_dtype or a.dtype, device=a.device)
    nt_product(a, b, None, b_scale, out, kind, False, gran_n, gran_k)
    return out

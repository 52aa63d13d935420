"""The published batched GEMMs."""

from __future__ import annotations

import torch

from mate_plugin.kernels.checks import BACKENDS, choice, contract, describe, granularity
from mate_plugin.kernels.dense import FLOATS, HALF, check_out_type, run

_PER_TENSOR = (-1, -1, -1)

_BMM_FP16 = {
    dtype: contract(
        "batched_gemm",
        f"a: {name} [B, M, K] rows",
        f"b: {name} [B, K, N] major",
        "out: bf16|fp16|f32 [B, M, N] out optional",
        "c: bf16|fp16|f32 [B, M, N] rows optional inplace",
    )
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"))
}


def bmm_fp16(
    a: torch.Tensor,
    b: torch.Tensor,
    out_dtype: torch.dtype,
    out: torch.Tensor | None = None,
    backend: str = "auto",
    c: torch.Tensor | None = None,
) -> torch.Tensor:
    """Batched product of 16-bit matrices, ``a @ b (+ c)``, accumulated in float32.

    Args:
        a: bfloat16 or float16 (B, M, K), K contiguous; rows and batches may have any stride.
        b: the same type, (B, K, N), K or N contiguous.
        out_dtype: bfloat16, float16 or float32.
        out: (B, M, N) of that type, N contiguous; None allocates it.
        backend: "auto", "mudnn" or "mubin": a library of the musa device, without effect elsewhere.
        c: (B, M, N), bfloat16, float16 or float32, N contiguous, added before the one rounding to
            ``out_dtype``. May be ``out`` itself.

    Returns:
        ``out``.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong shape, layout, device, dtype of the result or backend, or ``out`` shares
            memory with another argument. Nothing is written.
        NotImplementedError: there are no kernels for the device.
    """
    choice("backend", backend, BACKENDS)
    check_out_type(out, out_dtype, FLOATS)
    if not isinstance(a, torch.Tensor):
        raise TypeError(f"a: expected a torch.Tensor, got {describe(a)}")
    if a.dtype not in _BMM_FP16:
        raise TypeError(f"a: expected dtype torch.bfloat16 or torch.float16, got {a.dtype}")
    _BMM_FP16[a.dtype](a, b, out, c)
    if out is None:
        shape = (a.shape[0], a.shape[1], b.shape[2])
        out = torch.empty(shape, dtype=out_dtype, device=a.device)
    return run(a, None, b.transpose(1, 2), None, out, 0, 0, c, backend=backend)


# How A is scaled, per granularity; types of a result that has a scale of its own.
_BMM_FP8_KINDS = {_PER_TENSOR: "tensor", (1, -1, -1): "rows"}
_HALF_OR_E4M3 = (*HALF, torch.float8_e4m3fn)
_BMM_FP8 = {
    kind: contract(
        "batched_gemm",
        "a: fp8 [B, M, K] rows",
        f"a_scale: f32 {scale_a}",
        "b: fp8 [B, K, N] cols",
        f"b_scale: f32 {scale_b}",
        "out: bf16|fp16|e4m3 [B, M, N] out optional",
        "output_scale: f32 one optional",
    )
    for kind, scale_a, scale_b in (
        ("tensor", "one", "one"),
        ("rows", "[B, M, 1]", "one"),
        ("rows and batches", "[B, M, 1]", "[B, 1, 1]"),
    )
}


def bmm_fp8(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    out_dtype: torch.dtype,
    out: torch.Tensor | None = None,
    backend: str = "auto",
    scale_granularity_mnk: tuple[int, int, int] | None = None,
    output_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Batched product of FP8 matrices, ``(a * a_scale) @ (b * b_scale)``, accumulated in float32.

    Args:
        a: e4m3fn or e5m2 (B, M, K), K contiguous; rows and batches may have any stride.
        b: e4m3fn or e5m2 (B, K, N), K contiguous (a transposed view of (B, N, K)).
        a_scale: float32; one element, or (B, M, 1) with granularity (1, -1, -1).
        b_scale: float32; one element, or (B, 1, 1) with granularity (1, -1, -1).
        out_dtype: bfloat16 or float16, or float8_e4m3fn with ``output_scale``.
        out: (B, M, N) of that type, N contiguous; None allocates it.
        backend: "auto", "mudnn" or "mubin": a library of the musa device, without effect elsewhere.
        scale_granularity_mnk: (-1, -1, -1), which None takes, or (1, -1, -1).
        output_scale: float32, one element; the result is divided by it. e4m3 saturates at 448.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`bmm_fp16`.
    """
    choice("backend", backend, BACKENDS)
    kind = granularity(scale_granularity_mnk, _BMM_FP8_KINDS, _PER_TENSOR)
    if kind == "rows" and isinstance(b_scale, torch.Tensor) and b_scale.dim() == 3:
        kind = "rows and batches"
    check_out_type(out, out_dtype, HALF if output_scale is None else _HALF_OR_E4M3)
    _BMM_FP8[kind](a, a_scale, b, b_scale, out, output_scale)
    if out is None:
        shape = (a.shape[0], a.shape[1], b.shape[2])
        out = torch.empty(shape, dtype=out_dtype, device=a.device)
    b = b.transpose(1, 2)
    return run(a, a_scale, b, b_scale, out, 0, 0, divisor=output_scale, backend=backend)

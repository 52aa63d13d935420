"""Shared half of the dense GEMMs: the type of the result, the one compiled call."""

from __future__ import annotations

from typing import Any

import torch

from mate_plugin.kernels import gemm_ops, library
from mate_plugin.kernels.checks import describe

HALF = (torch.bfloat16, torch.float16)
FLOATS = (*HALF, torch.float32)


def check_out_type(out: Any, out_dtype: Any, allowed: tuple[torch.dtype, ...]) -> None:
    """``out_dtype`` is allowed, and that of ``out`` where there is one."""
    if not isinstance(out_dtype, torch.dtype):
        raise TypeError(f"out_dtype: expected a torch.dtype, got {describe(out_dtype)}")
    if out_dtype not in allowed:
        names = " or ".join(str(dtype) for dtype in allowed)
        raise ValueError(f"out_dtype: expected {names}, got {out_dtype}")
    if isinstance(out, torch.Tensor) and out.dtype != out_dtype:
        raise TypeError(f"out: expected dtype {out_dtype}, got {out.dtype}")


def run(
    a: torch.Tensor,
    sa: torch.Tensor | None,
    b: torch.Tensor,
    sb: torch.Tensor | None,
    out: torch.Tensor,
    gran_n: int,
    gran_k: int,
    c: torch.Tensor | None = None,
    divisor: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Call the core on operands ([batch,] rows, K) that satisfy their contract."""
    gemm_ops.batched_gemm(
        a,
        sa,
        b,
        sb,
        out,
        c,
        divisor,
        out_scale,
        library.tag(a.dtype),
        library.tag(b.dtype),
        library.tag(out.dtype if c is None else c.dtype),
        gran_n,
        gran_k,
        library.tag(out.dtype),
        backend,
        library.threads(None, a),
        library.stream(a),
    )
    return out

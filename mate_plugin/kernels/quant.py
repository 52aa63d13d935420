"""FP8 quantisation by groups of a row, SwiGLU, and both in one pass."""

from __future__ import annotations

import math

import torch

from mate_plugin.kernels import library
from mate_plugin.kernels.checks import choice, contract, describe, integer

SCALE_MAJORS: dict[str | None, bool] = {"K": False, "MN": True}

_group_quant = library.define(
    "group_quant_fp8",
    "(Tensor x, Tensor(a!) q, Tensor(b!) scale, int group, bool ue8m0, int tag, int q_tag,"
    " int num_threads, int stream) -> ()",
)
_silu_and_mul = library.define(
    "silu_and_mul",
    "(Tensor x, Tensor(a!) out, float limit, int tag, int num_threads, int stream) -> ()",
)
_silu_and_mul_quant = library.define(
    "silu_and_mul_quant_fp8",
    "(Tensor x, Tensor(a!) q, Tensor(b!) scale, int group, bool ue8m0, float limit, bool rounded,"
    " int tag, int q_tag, int num_threads, int stream) -> ()",
)

_CHECK_QUANT = contract("group_quant_fp8", "x: bf16|fp16|f32 [T, K] rows")
# Keyed by whether the scales are stored group by group.
_CHECK_QUANT_OUT = {
    by_group: contract(
        "group_quant_fp8",
        "x: bf16|fp16|f32 [T, K] rows",
        "out[0]: fp8 [T, Kq] out",
        scale,
        where={"Kq": "K // parts", "G": "ceil_div(Kq, group)"},
    )
    for by_group, scale in (
        (False, "out[1]: f32 [T, G] out"),
        (True, "out[1].mT: f32 [G, T] out"),
    )
}
_CHECK_SILU = {
    dtype: contract(
        "silu_and_mul",
        f"x: {name} [T, K] rows",
        f"out: {name} [T, I] out optional",
        where={"I": "K // 2"},
    )
    for dtype, name in (
        (torch.bfloat16, "bf16"),
        (torch.float16, "fp16"),
        (torch.float32, "f32"),
    )
}


def per_token_group_quant_fp8(
    x: torch.Tensor,
    group_size: int = 128,
    dtype: torch.dtype = torch.float8_e4m3fn,
    *,
    ue8m0: bool = False,
    scale_major: str = "K",
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each group of ``group_size`` columns of a row to FP8 with a scale of its own.

    ``scale = max(amax, 1e-10) / largest`` with the type's largest value (448 or 57344), and
    ``q = round(x / scale)``: both true float32 divisions, rounding to nearest, ties to even,
    saturating. Dequantise with ``q.float() * scale``. A NaN makes every code and the scale of its
    group NaN; an infinity makes the scale infinite, its own code NaN and the others of its group 0.
    Other groups are not affected.

    Args:
        x: bfloat16, float16 or float32 (..., K), K contiguous. Rows may have any stride; more
            leading dimensions than one whose strides do not combine are copied first.
        group_size: columns per scale, >= 1; the last group of a row may be shorter. -1 is all of K.
        dtype: float8_e4m3fn or float8_e5m2.
        ue8m0: round scales up to powers of two.
        scale_major: "K" stores the scales row by row, "MN" group by group (the same shape, with
            the tokens contiguous).
        out: ``(q, scale)`` to write, of the shapes below and the layout that ``scale_major`` says;
            rows may have any stride. None allocates them.

    Returns:
        ``q`` (..., K) of ``dtype`` and ``scale`` float32 (..., ceil(K / group_size)).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong shape, layout or value. Nothing is written.
        NotImplementedError: there are no kernels for the device.
    """
    rows, group = _rows("x", x), _group(group_size, x)
    _CHECK_QUANT(rows)
    q, scale = _outputs(x, rows, 1, group, dtype, scale_major, out)
    _group_quant(
        rows,
        q,
        scale,
        group,
        ue8m0,
        library.tag(x.dtype),
        library.tag(q.dtype),
        library.threads(None, x),
        library.stream(x),
    )
    return (_like(x, q), _like(x, scale)) if out is None else out


def silu_and_mul(
    x: torch.Tensor, out: torch.Tensor | None = None, *, limit: float | None = None
) -> torch.Tensor:
    """SwiGLU: ``gate * sigmoid(gate) * up`` of the two halves of each row, in float32.

    Args:
        x: bfloat16, float16 or float32 (..., 2 I), gate first. The last dimension is contiguous,
            rows may have any stride.
        out: (..., I) of the same dtype to write, rows of any stride; None allocates it.
        limit: cut ``gate`` at ``limit`` and ``up`` at ``-limit`` and ``limit`` first, as
            DeepSeek-style models with a ``swiglu_limit`` do; > 0. None cuts nothing.

    Returns:
        ``out``. A gate of minus infinity gives NaN, as in torch.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong shape, layout or value. Nothing is written.
        NotImplementedError: there are no kernels for the device.
    """
    rows, cut = _gate_rows(x), _cut(limit)
    if x.dtype not in _CHECK_SILU:
        names = ", ".join(str(known) for known in _CHECK_SILU)
        raise TypeError(f"x: expected dtype {names}, got {x.dtype}")
    if out is None:
        _CHECK_SILU[x.dtype](rows, None)
        out = torch.empty(*x.shape[:-1], x.shape[-1] // 2, dtype=x.dtype, device=x.device)
        out_rows = _rows("out", out)
    else:
        out_rows = _out_rows("out", x, out)
        _CHECK_SILU[x.dtype](rows, out_rows)
    _silu_and_mul(
        rows, out_rows, cut, library.tag(x.dtype), library.threads(None, x), library.stream(x)
    )
    return out


def silu_and_mul_quant_fp8(
    x: torch.Tensor,
    group_size: int = 128,
    dtype: torch.dtype = torch.float8_e4m3fn,
    *,
    limit: float | None = None,
    round_first: bool = False,
    ue8m0: bool = False,
    scale_major: str = "K",
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`silu_and_mul` and :func:`per_token_group_quant_fp8` in one pass over ``x``.

    Args:
        x: as for :func:`silu_and_mul`.
        limit: as for :func:`silu_and_mul`.
        round_first: round the SwiGLU product to the dtype of ``x`` before it is quantised, as
            engines do that run two kernels. By default it goes from float32 to FP8 directly.
        group_size, dtype, ue8m0, scale_major, out: as for :func:`per_token_group_quant_fp8`.

    Returns:
        ``q`` (..., I) of ``dtype`` and ``scale`` float32 (..., ceil(I / group_size)).

    Raises:
        As the two functions.
    """
    rows, cut = _gate_rows(x), _cut(limit)
    group = _group(group_size, x, parts=2)
    _CHECK_QUANT(rows)
    q, scale = _outputs(x, rows, 2, group, dtype, scale_major, out)
    _silu_and_mul_quant(
        rows,
        q,
        scale,
        group,
        ue8m0,
        cut,
        round_first,
        library.tag(x.dtype),
        library.tag(q.dtype),
        library.threads(None, x),
        library.stream(x),
    )
    return (_like(x, q), _like(x, scale)) if out is None else out


def _rows(name: str, x: torch.Tensor) -> torch.Tensor:
    """``x`` as a matrix."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {describe(x)}")
    if x.dim() == 2:
        return x
    if x.dim() == 0:
        raise ValueError(f"{name}: expected shape (..., K), got ()")
    if x.dim() == 1:
        return x.unsqueeze(0)
    return x.flatten(0, -2)


def _gate_rows(x: torch.Tensor) -> torch.Tensor:
    rows = _rows("x", x)
    if rows.shape[1] % 2:
        raise ValueError(f"x: expected (..., 2 I), an even number of columns, got {tuple(x.shape)}")
    return rows


def _out_rows(name: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``out`` as a matrix that shares its memory."""
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {describe(out)}")
    if out.shape[:-1] != x.shape[:-1] or out.dim() != x.dim():
        raise ValueError(
            f"{name}: expected shape {(*x.shape[:-1], '?')} beside x {tuple(x.shape)},"
            f" got {tuple(out.shape)}"
        )
    if not _combines(out):
        raise ValueError(
            f"{name}: expected leading dimensions whose strides combine,"
            f" got strides {out.stride()} for shape {tuple(out.shape)}"
        )
    return _rows(name, out)


def _combines(x: torch.Tensor) -> bool:
    """Whether all dimensions but the last step through memory as one."""
    step: int | None = None
    for dim in range(x.dim() - 2, -1, -1):
        if x.shape[dim] == 0:
            return True
        if x.shape[dim] == 1:
            continue
        if step is not None and x.stride(dim) != step:
            return False
        step = x.stride(dim) * x.shape[dim]
    return True


def _like(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``rows`` under the leading dimensions of ``x``."""
    if x.dim() == 2:
        return rows
    return rows.squeeze(0) if x.dim() == 1 else rows.unflatten(0, x.shape[:-1])


def _group(size: int, x: torch.Tensor, parts: int = 1) -> int:
    if size == -1:
        return max(x.shape[-1] // parts, 1)
    integer("group_size", size, 1, optional=False)
    return size


def _cut(limit: float | None) -> float:
    """The core's form of ``limit``: below zero is none."""
    if limit is None:
        return -1.0
    if not isinstance(limit, (int, float)) or isinstance(limit, bool):
        raise TypeError(f"limit: expected a number or None, got {describe(limit)}")
    if not limit > 0 or math.isnan(limit):
        raise ValueError(f"limit: expected a number above 0 or None, got {limit}")
    return float(limit)


def _outputs(
    x: torch.Tensor,
    rows: torch.Tensor,
    parts: int,
    group: int,
    dtype: torch.dtype,
    scale_major: str,
    out: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """New outputs for the columns of ``rows`` over ``parts``, or the given ones, checked."""
    if dtype not in library.FP8_DTYPES:
        names = " or ".join(str(known) for known in library.FP8_DTYPES)
        raise TypeError(f"dtype: expected {names}, got {describe(dtype)}")
    by_group = choice("scale_major", scale_major, SCALE_MAJORS)
    num_rows, cols = rows.shape[0], rows.shape[1] // parts
    if out is None:
        groups = (cols + group - 1) // group
        q = torch.empty(num_rows, cols, dtype=dtype, device=rows.device)
        shape = (groups, num_rows) if by_group else (num_rows, groups)
        scale = torch.empty(shape, dtype=torch.float32, device=rows.device)
        return q, scale.t() if by_group else scale
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(f"out: expected a tuple (q, scale) or None, got {describe(out)}")
    q, scale = (_out_rows(f"out[{i}]", x, part) for i, part in enumerate(out))
    _CHECK_QUANT_OUT[by_group](rows, q, scale.t() if by_group else scale, parts, group)
    if q.dtype != dtype:
        raise TypeError(f"out[0]: expected dtype {dtype}, got {q.dtype}")
    return q, scale

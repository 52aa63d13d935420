"""Weights in the order in which the kernels read them fastest.

Kernels multiply several columns side by side. From rows they have to transpose what they read, or
to add across lanes; packed weights are one stream of memory without that. A packed weight holds
the same elements in as many bytes, and its shape says so: ``[..., N / 16, K / q, 16, q]``
for rows ``[..., N, K]``, with q = 4 FP8 codes or 2 elements of 16 bits. The order within its last
two dimensions is the kernels' own.
"""

from __future__ import annotations

import torch

from mate_plugin.kernels import library
from mate_plugin.kernels.checks import describe

ROWS = 16
_BYTES = 4  # of one row that lie together
_DTYPES = (*library.FP8_DTYPES, torch.bfloat16)

_pack = library.define(
    "pack_weights",
    "(Tensor rows, Tensor(a!) packed, int tag, int num_threads, int stream) -> ()",
)


def wanted(dtype: torch.dtype) -> bool:
    """Whether the kernels in use read packed weights of ``dtype``."""
    return dtype in _DTYPES and bool(library.module().packs_weights(library.tag(dtype)))


def why_not(weight: torch.Tensor) -> str | None:
    """Why ``weight[..., N, K]`` cannot be packed here, or None."""
    if not weight.is_cpu:
        return f"weights on {weight.device.type!r} are not packed"
    if not wanted(weight.dtype):
        return f"the {library.isa()} kernels read weights of {weight.dtype} as they are"
    if weight.dim() not in (2, 3) or not weight.is_contiguous() or not weight.numel():
        return f"expected contiguous [N, K] or [E, N, K], got {describe(weight)}"
    if weight.shape[-2] % ROWS or weight.shape[-1] * weight.element_size() % _BYTES:
        return f"expected N in {ROWS}s and {_BYTES} bytes of K, got {list(weight.shape[-2:])}"
    codes = weight.view(torch.uint8) if weight.dtype in library.FP8_DTYPES else weight
    if library.module().has_codes_to_leave(codes, library.tag(weight.dtype), library.threads(None)):
        return f"the {library.isa()} kernels read NaN from rows only"
    return None


def pack_weights(weight: torch.Tensor, in_place: bool = False) -> torch.Tensor:
    """The same weights as the kernels in use read them fastest, for ``input_b`` of ``mate.gemm``.

    Args:
        weight: contiguous (N, K) or (E, N, K): FP8 or bfloat16, N a multiple of 16, rows of whole
            4 bytes.
        in_place: rearrange the memory of ``weight``, which can then be read as rows no more.

    Returns:
        ``(..., N / 16, K / q, 16, q)``; a view of ``weight`` with ``in_place``.

    Raises:
        TypeError: the weight is no tensor.
        ValueError: the weight cannot be packed, or the kernels in use read rows.
    """
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"weight: expected a torch.Tensor, got {describe(weight)}")
    if reason := why_not(weight):
        raise ValueError(f"weight: {reason}")
    return rearrange(weight, weight if in_place else torch.empty_like(weight))


def rearrange(weight: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """Pack ``weight``, for which :func:`why_not` found nothing, into the memory of ``to``."""
    packed = packed_view(to)
    _pack(
        weight,
        packed,
        library.tag(weight.dtype),
        library.threads(None, weight),
        library.stream(weight),
    )
    return packed


def packed_view(weight: torch.Tensor) -> torch.Tensor:
    """Rows whose memory was packed in place, in the shape that says so."""
    *experts, n, k = weight.shape
    four = _BYTES // weight.element_size()
    return weight.view(*experts, n // ROWS, k // four, ROWS, four)


def take_rows(weight: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Rows ``[first, last)`` of ``weight[E, N, K]``, packed or not; packed ones come in 16s."""
    step = ROWS if weight.dim() > 3 else 1
    return weight[:, first // step : last // step]


def as_rows(weight: torch.Tensor) -> torch.Tensor:
    """The shape ``[..., N, K]`` that packed weights stand for; other tensors as they are."""
    if not isinstance(weight, torch.Tensor) or weight.dim() < 4 or weight.shape[-2] != ROWS:
        return weight
    if not weight.is_cpu:
        raise ValueError("packed weights: expected rows on a GPU, whose kernels read no others")
    *experts, panels, fours, rows, four = weight.shape
    try:
        return weight.view(*experts, panels * rows, fours * four)
    except RuntimeError:
        raise ValueError(
            "packed weights: expected whole panels that follow one another,"
            f" got {list(weight.shape)} with strides {list(weight.stride())}"
        ) from None

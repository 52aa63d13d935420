"""Do two tensors share memory? Host arithmetic on addresses and strides; no data is read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def _span(x: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last one."""
    if x.is_contiguous():
        return x.nbytes
    last = 0
    for size, stride in zip(x.shape, x.stride(), strict=True):
        if size == 0:
            return 0
        last += (size - 1) * stride
    return (last + 1) * x.element_size()


def overlaps(
    out: torch.Tensor, others: Sequence[torch.Tensor | None], allow_same: bool = False
) -> bool:
    """Whether ``out`` may share bytes with one of ``others``.

    Interleaved views of one buffer (column ranges, say) count as apart where their strides prove
    it. ``allow_same`` accepts a tensor that is ``out`` element by element.
    """
    low = out.data_ptr()
    high = low + _span(out)
    for x in others:
        if x is None:
            continue
        start = x.data_ptr()
        if start >= high:
            continue
        span = x.nbytes if x.is_contiguous() else _span(x)
        if start + span <= low or span == 0 or low == high:
            continue
        if allow_same and same(out, x):
            continue
        if not _interleaved(out, x):
            return True
    return False


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether both name the same elements in the same order."""
    return (
        a.data_ptr() == b.data_ptr()
        and a.dtype == b.dtype
        and a.shape == b.shape
        and a.stride() == b.stride()
    )


def _interleaved(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the rows of both fall into separate byte ranges modulo their common row pitch."""
    pitch = 0
    widths = []
    for x in (a, b):
        width = x.element_size()
        for size, stride in zip(x.shape, x.stride(), strict=True):
            if stride == 1:
                width *= size
            elif size > 1:
                pitch = math.gcd(pitch, stride * x.element_size())
        widths.append(width)
    if pitch == 0:
        return False
    gap = (b.data_ptr() - a.data_ptr()) % pitch
    return widths[0] <= gap and gap + widths[1] <= pitch


def overlaps_itself(x: torch.Tensor) -> bool:
    """Whether two elements of a 1-D to 3-D tensor with a contiguous last dimension may coincide."""
    width = x.shape[-1]
    outer = [(x.stride(i), x.shape[i]) for i in range(x.dim() - 1) if x.shape[i] > 1]
    if width == 0 or not outer:
        return False
    if len(outer) == 1:
        return outer[0][0] < width
    (stride0, size0), (stride1, size1) = outer
    batches_outside = stride1 >= width and stride0 >= stride1 * (size1 - 1) + width
    rows_outside = stride0 >= width and stride1 >= stride0 * (size0 - 1) + width
    return not (batches_outside or rows_outside)

"""How an op's arguments become a call of kernels that take some forms of it, or the reason why not.

The vendor's kernels are taken for what their documentation, their checks and their own tests
cover, TileLang's for what they were written for. Whatever our contract allows beyond that is
refused with a reason: nothing is sent to a kernel that might read it otherwise. No form reads a
tensor's contents, so that graphs can be captured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

BLOCK = 128
MOST_ELEMENTS = 2**31
HALF = (torch.bfloat16, torch.float16)
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FP8 = (E4M3, E5M2)


class Later(str):
    """A reason that says nothing against the form of a call: another time it may be served."""


class Call(NamedTuple):
    """One call of a published function of the vendor's by the names of its parameters."""

    function: str
    arguments: dict[str, Any]


# What an empty result takes.
NOTHING = Call("", {})
Form = Call | str


def discontiguous(**tensors: torch.Tensor | None) -> str:
    """Which of the tensors is not contiguous."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            return f"{name} is not contiguous"
    return ""


def odd(unit: int, **sizes: int) -> str:
    """Which of the sizes is zero or no multiple of ``unit``."""
    for name, size in sizes.items():
        if size == 0 or size % unit:
            return f"{name} = {size} is no multiple of {unit}"
    return ""


def other_scales(gran_n: int, gran_k: int) -> str:
    """What weights have one scale for, where that is no block of 128 x 128; 0 is a dimension."""
    if (gran_n, gran_k) == (BLOCK, BLOCK):
        return ""
    shape = f"{gran_n or 'N'} x {gran_k or 'K'}"
    return f"weights have one scale per {shape} instead of {BLOCK} x {BLOCK}"


def too_large(*tensors: torch.Tensor) -> str:
    """For kernels whose offsets are 32-bit."""
    large = any(tensor.numel() >= MOST_ELEMENTS for tensor in tensors)
    return "an operand has 2**31 elements or more" if large else ""

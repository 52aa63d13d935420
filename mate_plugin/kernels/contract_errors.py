"""What a failed contract says: the argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from mate_plugin.kernels import select
from mate_plugin.kernels.memory import overlaps, overlaps_itself

# A size that follows from the sizes known so far.
Rule = Callable[[dict[str, Any]], int]


def ceil_div(size: int, block: int) -> int:
    """Number of blocks that cover ``size``; 0 or less is the whole dimension."""
    return 1 if block <= 0 else (size + block - 1) // block


@dataclass(frozen=True)
class Argument:
    """One line of a contract."""

    name: str
    dtypes: tuple[torch.dtype, ...]
    dims: tuple[str, ...] | None  # None: one element, any rank
    layout: str
    optional: bool
    inplace: bool


def explain(
    op: str,
    args: Sequence[Argument],
    where: Mapping[str, str],
    rules: Mapping[str, Rule],
    names: Sequence[str],
    values: tuple[Any, ...],
    params: tuple[Any, ...],
) -> NoReturn:
    """Raise the error of the first line that does not hold."""
    sizes: dict[str, Any] = dict(zip(names, params, strict=True))
    device = getattr(values[0], "device", None)
    for arg, x in zip(args, values, strict=True):
        if x is None and arg.optional:
            continue
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{arg.name}: expected a torch.Tensor, got {describe(x)}")
        if x.dtype not in arg.dtypes:
            types = " or ".join(str(dtype) for dtype in arg.dtypes)
            raise TypeError(f"{arg.name}: expected dtype {types}, got {x.dtype}")
        if x.layout is not torch.strided:
            raise TypeError(f"{arg.name}: expected a dense tensor, got {x.layout}")
        if x.device != device:
            first = args[0].name
            raise ValueError(
                f"{arg.name}: expected device {device} (that of {first}), got {x.device}"
            )
        _explain_shape(arg, x, sizes, where, rules)
        _explain_layout(arg, x)
    select.require(op, values[0].device)
    for arg, out in zip(args, values, strict=True):
        if arg.layout == "out" and out is not None:
            for other, x in zip(args, values, strict=True):
                if other is not arg and overlaps(out, (x,), other.inplace):
                    raise ValueError(
                        f"{arg.name}: expected memory of its own, got a tensor that overlaps"
                        f" {other.name}"
                    )
    raise RuntimeError(f"{op}: a contract failed without a reason")


def _explain_shape(
    arg: Argument,
    x: torch.Tensor,
    sizes: dict[str, Any],
    where: Mapping[str, str],
    rules: Mapping[str, Rule],
) -> None:
    shape = tuple(x.shape)
    if arg.dims is None:
        if x.numel() != 1:
            raise ValueError(f"{arg.name}: expected one element, got shape {shape}")
        return
    for dim in arg.dims:
        if dim in rules and dim not in sizes:
            sizes[dim] = rules[dim](sizes)
    wanted = [int(dim) if dim.isdigit() else sizes.get(dim) for dim in arg.dims]
    if len(shape) != len(wanted) or any(
        w not in (None, s) for w, s in zip(wanted, shape, strict=True)
    ):
        names = ", ".join(arg.dims)
        # While torch.compile traces, only a tuple can format symbolic sizes.
        filled = f"{tuple(wanted)}"
        if any(w is None for w in wanted):
            filled = f"({', '.join('?' if w is None else str(w) for w in wanted)})"
        because = "".join(f", {d} = {where[d]}" for d in arg.dims if d in where)
        raise ValueError(f"{arg.name}: expected shape ({names}) = {filled}{because}, got {shape}")
    sizes.update(zip(arg.dims, shape, strict=True))


def _explain_layout(arg: Argument, x: torch.Tensor) -> None:
    if arg.dims is None or arg.layout == "any" or x.numel() == 0:
        return
    names = ", ".join(arg.dims)
    unit = [size <= 1 or stride == 1 for size, stride in zip(x.shape, x.stride(), strict=True)]
    if arg.layout in ("rows", "out") and not unit[-1]:
        wanted = f"{arg.dims[-1]} to be contiguous"
    elif arg.layout == "cols" and not unit[-2]:
        wanted = f"{arg.dims[-2]} to be contiguous"
    elif arg.layout == "major" and not (unit[-1] or unit[-2]):
        wanted = f"{arg.dims[-1]} or {arg.dims[-2]} to be contiguous"
    elif arg.layout == "contiguous" and not x.is_contiguous():
        wanted = "a contiguous tensor"
    elif arg.layout == "out" and overlaps_itself(x):
        wanted = "elements that do not overlap"
    else:
        return
    raise ValueError(
        f"{arg.name}: expected {wanted} in ({names}) = {tuple(x.shape)}, got strides {x.stride()}"
    )


def describe(value: object) -> str:
    """A wrong value in a few words."""
    text = repr(value)
    kind = type(value).__name__
    return kind if isinstance(value, torch.Tensor) or len(text) > 60 else f"{kind} {text}"

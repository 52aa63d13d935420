"""What making a program, without looking into it, takes."""

from __future__ import annotations

from typing import Any


def _anything(*arguments: Any) -> tuple[Any, ...]:
    return arguments


dynamic = Tensor = StridedTensor = _anything


def prim_func(program: Any) -> Any:
    return program

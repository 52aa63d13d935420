"""One valid call of each function on the GPU, run anew from the same state as often as needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from api_calls import CALLS, Arguments, is_written, tensors
from device_contract import NO_KERNELS
from gemm_cases import bits

each_call = pytest.mark.parametrize("call", [name for name in CALLS if name not in NO_KERNELS])


class Call:
    """A call and its tensors; ``reset`` takes back what it wrote."""

    def __init__(self, call: str, change: Callable[[str, torch.Tensor], None] | None = None):
        self.name = call
        self.function, build = CALLS[call]
        self.arguments: Arguments = build()
        self.change(change)
        written = [(name, x) for name, x in tensors(self.arguments) if is_written(call, name)]
        self.written = [(x, x.clone()) for _, x in written]

    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        return list(tensors(self.arguments))

    def change(self, change: Callable[[str, torch.Tensor], None] | None) -> None:
        for name, x in tensors(self.arguments):
            if change is not None:
                change(name, x)

    def run(self) -> Any:
        return self.function(**self.arguments)

    def reset(self) -> None:
        for x, before in self.written:
            x.copy_(before)

    def assert_wrote_like(self, other: Call) -> None:
        assert self.written
        for (x, _), (y, _) in zip(self.written, other.written, strict=True):
            assert torch.equal(bits(x), bits(y))

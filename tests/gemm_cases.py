"""Operands and tolerances for the GEMM tests.

Tolerance: float32 accumulation of K products in any order is off by at most about
``K * 2**-24 * sum(|a| |b| |scales|)`` (Hopper's FP8 products by more, see ``devices``), a few more
roundings come with the scales, and the result is rounded once to the type of the output (half a
unit in the last place).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from devices import seeded, tensor_core_slack
from examples import examples
from hypothesis import HealthCheck, settings

from mate_plugin.kernels.reference.gemm import Operand, split

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BF16, FP16, F32 = torch.bfloat16, torch.float16, torch.float32
FP8 = (E4M3, E5M2)
NAN = float("nan")
SENTINEL = 77.0

# Relative and absolute half unit in the last place.
_ROUNDING = {BF16: (2**-8, 0), FP16: (2**-11, 2**-25), F32: (2**-24, 0), E4M3: (2**-4, 2**-10)}

cases = settings(
    max_examples=examples(150),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def ceil_div(size: int, block: int) -> int:
    return 1 if block <= 0 else -(-size // block)


class Maker:
    """Random tensors from one seed; ``strided`` ones are views with NaN between their rows."""

    def __init__(self, seed: int, strided: bool = False) -> None:
        self.generator = seeded(seed)
        self.strided = strided

    def normal(self, *shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
        return self.view(torch.randn(*shape, generator=self.generator).to(dtype))

    def scale(self, *shape: int) -> torch.Tensor:
        """No powers of two, from 0.1 to 3.1."""
        return self.view(0.1 + 3 * torch.rand(*shape, generator=self.generator))

    def view(self, x: torch.Tensor) -> torch.Tensor:
        if not self.strided or x.dim() < 2:
            return x
        *outer, rows, width = x.shape
        room = torch.full((*outer, rows + 1, width + 3), NAN).to(x.dtype)
        view = room[..., :rows, 2 : 2 + width]
        view.copy_(x)
        return view

    def out(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return self.view(torch.full(shape, SENTINEL).to(dtype))

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """int32 in [low, high)."""
        return torch.randint(low, high, shape, generator=self.generator, dtype=torch.int32)


def magnitude(operand: Operand) -> Operand:
    """The operand with every element and scale replaced by its magnitude."""
    x, scale = split(operand)
    wide = x.to(F32).abs()
    return wide if scale is None else (wide, scale.abs())


def assert_close(
    out: torch.Tensor, product: Callable[[Any, Any], torch.Tensor], a: Operand, b: Operand, k: int
) -> None:
    """``out`` is ``product(a, b)`` up to float32 accumulation and one rounding."""
    assert_within(out, product(a, b), product(magnitude(a), magnitude(b)), k)


def assert_within(out: torch.Tensor, want: torch.Tensor, size: torch.Tensor, k: int) -> None:
    """As above; ``size`` is the product of the magnitudes."""
    relative, absolute = _ROUNDING[out.dtype]
    accumulated = ((k + 8) * 2**-24 + tensor_core_slack(out)) * size
    bound = accumulated + relative * (want.abs() + accumulated) + absolute
    got = out.to(F32).to(torch.float64)
    finite = want.isfinite()
    assert torch.equal(got.isnan(), want.isnan())
    infinite = want.isinf()
    assert torch.equal(got[infinite], want[infinite])
    wrong = finite & ~((got - want).abs() <= bound)
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()} differ, first at {wrong.nonzero()[0].tolist()}:"
        f" {got[wrong][0]:.6g} instead of {want[wrong][0]:.6g} within {bound[wrong][0]:.3g}"
    )


def bits(x: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, so that NaNs compare too."""
    return x.contiguous().reshape(-1).view(torch.uint8)

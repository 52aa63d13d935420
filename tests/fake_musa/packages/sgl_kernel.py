"""A stand-in for SGLang's compiled kernels: any can be imported, none can be called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name}: not on the simulated device")

    return missing


__path__: list[str] = []
for module in ("quantization",):
    sys.modules[f"{__name__}.{module}"] = sys.modules[__name__]

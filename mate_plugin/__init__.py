"""FP8 mixture-of-experts and sparse-attention kernels, and the engine plugins around them.

``mate_plugin.gemm`` and ``mate_plugin.deep_gemm`` are the documented functions. Importing the
package itself touches no device, no engine and not even torch; submodules load on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "gemm": "mate_plugin.kernels.gemm",
    "deep_gemm": "mate_plugin.kernels.deep_gemm",
    "config": "mate_plugin.config",
    "report": "mate_plugin.report",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(_LAZY[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

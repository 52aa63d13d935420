"""``mate.deep_gemm`` is ``mate_plugin.kernels.deep_gemm``: one module, the same functions."""

import sys

from mate_plugin.kernels import deep_gemm

sys.modules[__name__] = deep_gemm

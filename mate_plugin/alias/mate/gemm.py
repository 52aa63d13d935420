"""``mate.gemm`` is ``mate_plugin.kernels.gemm``: one module, the same functions."""

import sys

from mate_plugin.kernels import gemm

sys.modules[__name__] = gemm

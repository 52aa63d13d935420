"""``mate.gemm`` is ``mate_plugin.kernels.gemm``: the same module, so the same functions."""

import sys

from mate_plugin.kernels import gemm

sys.modules[__name__] = gemm

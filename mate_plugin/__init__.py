"""FP8 mixture-of-experts and sparse-attention kernels, and the engine plugins around them.

Importing this package touches no device, no engine and not even torch; submodules load on use.
"""

__version__ = "0.1.0"

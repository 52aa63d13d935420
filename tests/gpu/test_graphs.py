"""CUDA graphs."""

from device_graphs import *  # noqa: F403
from gpu_contract import require_gpu

require_gpu()

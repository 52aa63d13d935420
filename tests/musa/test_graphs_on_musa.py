"""Graphs of the simulated device."""

from musa_contract import require_device

require_device()

from device_graphs import *  # noqa: E402, F403

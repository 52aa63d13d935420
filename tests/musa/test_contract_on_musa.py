"""The contract of the kernels."""

from device_contract import GEMMS, INDEXER, INPUT, PIECES
from musa_contract import contract

globals().update(contract({**GEMMS, **INDEXER, **PIECES, **INPUT}))

"""The contract of the kernels."""

from device_contract import GEMMS, INDEXER, INPUT, PIECES
from musa_contract import contract

HERE_TOO = {
    "bad_input": {"test_sparse": "the simulated device has no sparse tensors"},
}
MODULES = {**GEMMS, **INDEXER, **PIECES, **INPUT}
globals().update(
    contract({name: {**skips, **HERE_TOO.get(name, {})} for name, skips in MODULES.items()})
)

"""The GEMMs."""

from device_contract import GEMMS
from gpu_contract import contract

globals().update(contract(GEMMS))

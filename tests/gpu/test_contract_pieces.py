"""The pieces around the GEMMs, and the selection of the largest values."""

from device_contract import PIECES
from gpu_contract import contract

globals().update(contract(PIECES))

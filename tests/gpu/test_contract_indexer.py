"""The lightning indexer and the paged caches."""

from device_contract import INDEXER
from gpu_contract import contract

globals().update(contract(INDEXER))

"""Bad input, contents of index tensors, and torch.compile."""

from device_contract import INPUT
from gpu_contract import contract

globals().update(contract(INPUT))

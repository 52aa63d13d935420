"""Bad input, contents of index tensors, and torch.compile."""

from gpu_contract import SAME_ON_A_CPU, contract

MODULES: dict[str, dict[str, str]] = {
    "bad_contents": {},
    "bad_input": {"test_a_device_without_kernels": SAME_ON_A_CPU},
    "bad_options": {},
    "compile": {},
}
globals().update(contract(MODULES))

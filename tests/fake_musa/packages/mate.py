"""A stand-in for the vendor's mate: what SGLang takes from it when it is imported on MUSA."""

from typing import NoReturn


def moe_fused_gate(*_: object, **__: object) -> NoReturn:
    raise NotImplementedError("mate.moe_fused_gate: not on the simulated device")

"""A stand-in for the vendor's mate: its signatures, its limits, plain torch.

The functions check what release 0.2.2 checks of its arguments, and what it takes for granted
without a check. ``FAKE_MATE_VERSION`` names a newer release, for what differs there.
"""

from typing import NoReturn

from vendor_calls import VERSION

__version__ = ".".join(map(str, VERSION))


def moe_fused_gate(*_: object, **__: object) -> NoReturn:
    """What SGLang takes from the package when it is imported on MUSA."""
    raise NotImplementedError("mate.moe_fused_gate: not on the simulated device")

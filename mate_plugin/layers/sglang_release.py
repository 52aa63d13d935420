"""The release of SGLang that the hooks are made for, and where it runs."""

from __future__ import annotations

from mate_plugin import findings
from mate_plugin.layers.seams import release

TESTED = ((0, 5, 23),)
MATE_CPU = "mate_cpu"


def version() -> str | None:
    """Version of the installed SGLang, or None."""
    return findings.version("sglang")


def obstacle() -> str | None:
    """Why no hook fits the installed release, or None."""
    found = version()
    if found is None:
        return "SGLang is not installed"
    if release(found) not in TESTED:
        known = ", ".join(".".join(map(str, one)) for one in TESTED)
        return f"expected SGLang {known}, found {found}"
    return None


def platform() -> str:
    """Name of the platform that SGLang runs on: mate_cpu, cuda, musa, unknown, ..."""
    from sglang.srt.platforms import current_platform

    return str(current_platform.device_name)


def on_mate_cpu() -> bool:
    """Whether SGLang runs on our platform."""
    return platform() == MATE_CPU


def on_musa() -> bool:
    """Whether SGLang runs on a Moore Threads GPU."""
    return platform() == "musa"

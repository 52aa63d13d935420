"""The releases of vLLM that the hooks are made for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# CPU builds exist for the first; a second one is taken as long as every seam looks as expected.
TESTED = ((0, 30), (0, 31), (0, 32))
UNTESTED = ((0, 33),)


def obstacle() -> str | None:
    """Why no hook fits the installed release, or None."""
    try:
        import vllm
    except ImportError as error:
        return f"vLLM cannot be imported: {error}"
    if release(vllm.__version__) not in TESTED + UNTESTED:
        known = ", ".join(f"{major}.{minor}" for major, minor in TESTED)
        return f"expected vLLM {known}, found {vllm.__version__}"
    return None


def lacking(wanted: Mapping[Any, Iterable[str]]) -> list[str]:
    """Names that the modules and classes of this vLLM should have, and do not."""
    return [
        f"{owner.__name__}.{name}"
        for owner, names in wanted.items()
        for name in names
        if not hasattr(owner, name)
    ]


def release(version: str) -> tuple[int, ...]:
    """Major and minor number."""
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int(part) if part.isdigit() else -1 for part in parts)

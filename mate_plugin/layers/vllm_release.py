"""The releases of vLLM that the hooks are made for."""

from __future__ import annotations

from mate_plugin.layers.seams import release

# CPU builds exist for the first; a second one is taken as long as every seam looks as expected.
TESTED = ((0, 30), (0, 31), (0, 32))
UNTESTED = ((0, 33),)


def obstacle() -> str | None:
    """Why no hook fits the installed release, or None."""
    try:
        import vllm
    except ImportError as error:
        return f"vLLM cannot be imported: {error}"
    if release(vllm.__version__)[:2] not in TESTED + UNTESTED:
        known = ", ".join(f"{major}.{minor}" for major, minor in TESTED)
        return f"expected vLLM {known}, found {vllm.__version__}"
    return None

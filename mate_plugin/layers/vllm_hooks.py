"""Which of vLLM's seams are filled in this process, and why the others are not."""

from __future__ import annotations

from mate_plugin import report
from mate_plugin.config import settings
from mate_plugin.layers import vllm_fp8, vllm_linear
from mate_plugin.report import Hook

# CPU builds exist for the first; a second one is taken as long as every seam looks as expected.
TESTED = ((0, 30), (0, 31), (0, 32))
UNTESTED = ((0, 33),)
SEAMS = {vllm_fp8.NAME: vllm_fp8.install, vllm_linear.NAME: vllm_linear.install}


def install() -> list[Hook]:
    """Try each hook and return what became of it."""
    obstacle = unsupported()
    hooks = []
    for name, fill in SEAMS.items():
        if not wanted(name):
            hook = Hook(name, False, f"switched off in the settings ({name}: false)")
        elif obstacle:
            hook = Hook(name, False, obstacle)
        else:
            hook = fill()
        hooks.append(report.record_hook(hook))
    return hooks


def wanted(name: str) -> bool:
    """Whether the settings ask for the hook ``name`` (section.field)."""
    section, _, field = name.partition(".")
    return bool(getattr(getattr(settings(), section), field))


def unsupported() -> str | None:
    """Why no hook fits this vLLM or this machine, or None."""
    try:
        import vllm
        from vllm.platforms import current_platform
    except ImportError as error:
        return f"vLLM cannot be imported: {error}"
    if _release(vllm.__version__) not in TESTED + UNTESTED:
        known = ", ".join(f"{major}.{minor}" for major, minor in TESTED)
        return f"expected vLLM {known}, found {vllm.__version__}"
    if not current_platform.is_cpu():
        return f"expected the platform cpu, found {current_platform.device_name}"
    from mate_plugin.kernels import library

    try:
        library.isa()
    except (ImportError, OSError, ValueError) as error:
        return f"the compiled core cannot be used: {error}"
    return None


def _release(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int(part) if part.isdigit() else -1 for part in parts)

"""Which of vLLM's seams are filled in this process, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mate_plugin import report
from mate_plugin.config import settings
from mate_plugin.indexer import vllm_scores, vllm_sparse
from mate_plugin.layers import vllm_fp8, vllm_linear, vllm_release
from mate_plugin.report import Hook


@dataclass(frozen=True)
class Seam:
    """How to fill one seam, and the platforms on which it is filled."""

    fill: Callable[[], Hook]
    platforms: tuple[str, ...] = ("cpu",)


SEAMS = {
    vllm_fp8.NAME: Seam(vllm_fp8.install),
    vllm_linear.NAME: Seam(vllm_linear.install),
    vllm_sparse.NAME: Seam(vllm_sparse.install),
    vllm_scores.NAME: Seam(vllm_scores.install, vllm_scores.PLATFORMS),
}


def install() -> list[Hook]:
    """Try each hook and return what became of it."""
    obstacle = unsupported()
    hooks = []
    for name, seam in SEAMS.items():
        if not wanted(name):
            where = "here" if _setting(name) == "auto" else "in the settings"
            value = str(_setting(name)).lower()
            hook = Hook(name, False, f"switched off {where} ({name}: {value})")
        elif reason := obstacle or _elsewhere(seam):
            hook = Hook(name, False, reason)
        else:
            hook = seam.fill()
        hooks.append(report.record_hook(hook))
    return hooks


def wanted(name: str) -> bool:
    """Whether the settings ask for the hook ``name`` (section.field)."""
    value = _setting(name)
    return vllm_scores.wanted_by_default() if value == "auto" else bool(value)


def unsupported() -> str | None:
    """Why no hook fits this vLLM or this machine, or None."""
    if reason := vllm_release.obstacle():
        return reason
    try:
        from vllm.platforms import current_platform  # noqa: F401
    except ImportError as error:
        return f"vLLM cannot be imported: {error}"
    from mate_plugin.kernels import library

    try:
        library.isa()
    except (ImportError, OSError, ValueError) as error:
        return f"the compiled core cannot be used: {error}"
    return None


def _setting(name: str) -> object:
    section, _, field = name.partition(".")
    return getattr(getattr(settings(), section), field)


def _elsewhere(seam: Seam) -> str | None:
    from vllm.platforms import current_platform

    if current_platform.device_type in seam.platforms:
        return None
    expected = " or ".join(seam.platforms)
    return f"expected the platform {expected}, found {current_platform.device_type}"

"""Filling the seams of an engine in one process: which, where, and why not the others."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mate_plugin import report
from mate_plugin.config import settings
from mate_plugin.report import Hook


@dataclass(frozen=True)
class Seam:
    """How to fill one seam, and the platforms of the engine on which it is filled.

    auto: whether the setting ``auto`` means yes here.
    targets: dotted names of the engine that ``fill`` and what it installs rely on.
    opt_in: settings that must be on too, by platform.
    theirs: platforms where the engine has its own and nobody waits for ours.
    """

    fill: Callable[[], Hook]
    platforms: tuple[str, ...] = ("cpu",)
    auto: Callable[[], bool] = lambda: False
    targets: tuple[str, ...] = ()
    opt_in: Mapping[str, str] = field(default_factory=dict)
    theirs: tuple[str, ...] = ()


def install(
    seams: Mapping[str, Seam],
    obstacle: str | None,
    platform: Callable[[], str],
    engine: str,
) -> list[Hook]:
    """Try each seam (named section.field of the settings) and return what became of it.

    Args:
        obstacle: why no seam of the engine fits, or None. With one, the setting ``auto`` cannot
            tell and asks for its seam.
        platform: name of the platform that the engine runs on; asked only without an obstacle.
        engine: its name and version, for the line about targets that are not there.
    """
    hooks = []
    for name, seam in seams.items():
        value = _setting(name)
        if value is False:
            reason = f"switched off in the settings ({name}: false)"
            hook = Hook(name, False, reason, wanted=False)
        elif obstacle:
            hook = Hook(name, False, obstacle)
        elif value == "auto" and not seam.auto():
            hook = Hook(name, False, f"switched off here ({name}: auto)", wanted=False)
        elif (found := platform()) in seam.theirs:
            hook = Hook(name, False, f"left to {engine} on {found}", wanted=False)
        elif (switch := seam.opt_in.get(found)) and not _setting(switch):
            hook = Hook(name, False, f"left to {engine} on {found} ({switch}: false)", wanted=False)
        elif found not in seam.platforms:
            expected = " or ".join(seam.platforms)
            hook = Hook(name, False, f"expected the platform {expected}, found {found}")
        elif absent := _unresolved(seam.targets):
            hook = Hook(name, False, f"{engine} lacks {', '.join(absent)}")
        else:
            hook = seam.fill()
        hooks.append(report.record_hook(hook))
    return hooks


def lacking(wanted: Mapping[Any, Iterable[str]]) -> list[str]:
    """Names that the modules and classes of an engine should have, and do not."""
    return [
        f"{owner.__name__}.{name}"
        for owner, names in wanted.items()
        for name in names
        if not hasattr(owner, name)
    ]


def release(version: str) -> tuple[int, ...]:
    """Major, minor and patch number of a version."""
    parts = [*version.split("+")[0].split("."), "0", "0"][:3]
    return tuple(int(part) if part.isdigit() else -1 for part in parts)


def core_obstacle() -> str | None:
    """Why the compiled core cannot be used, or None."""
    from mate_plugin.kernels import library

    try:
        library.isa()
    except (ImportError, OSError, ValueError) as error:
        return f"the compiled core cannot be used: {error}"
    return None


def _setting(name: str) -> object:
    section, _, key = name.partition(".")
    return getattr(getattr(settings(), section), key)


def _unresolved(targets: Iterable[str]) -> list[str]:
    """Those that do not lead to anything in this installation."""
    absent = []
    for target in targets:
        try:
            pkgutil.resolve_name(target)
        except (ImportError, AttributeError, ValueError):
            absent.append(target)
    return absent

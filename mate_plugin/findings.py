"""What ``mate-plugin doctor`` reports in."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``fix`` says what to do where ``state`` is "wrong"."""

    topic: str
    state: State
    text: str
    fix: str = ""


def version(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def one_line(error: BaseException) -> str:
    """Type and message of an error, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

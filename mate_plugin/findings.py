"""What ``mate-plugin doctor`` reports in."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "wrong"]
# What compiles the library for a kind of device, and where its toolkit puts it.
COMPILERS = {"cuda": ("nvcc", "/usr/local/cuda/bin"), "musa": ("mcc", "/usr/local/musa/bin")}


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


def compiler(kind: str) -> str | None:
    """Path of the compiler for a kind of device, or None."""
    name, usual = COMPILERS[kind]
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), usual]))


def one_line(error: BaseException) -> str:
    """Type and message of an error, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

"""What ``mate-plugin doctor`` reports in."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Toolkit:
    """What compiles the library for a kind of device; variables that may name its folder, which
    cmake/ reads too; and where it usually is."""

    compiler: str
    variables: tuple[str, ...]
    folder: str


TOOLKITS = {
    "cuda": Toolkit("nvcc", ("CUDA_HOME", "CUDA_PATH"), "/usr/local/cuda"),
    "musa": Toolkit("mcc", ("MUSA_HOME", "MUSA_PATH"), "/usr/local/musa"),
}


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
    """Path of the compiler for a kind of device, or None; in the order in which CMake looks."""
    toolkit = TOOLKITS[kind]
    if kind == "cuda" and (named := os.environ.get("CUDACXX")):
        return shutil.which(named)
    hints = [os.environ[name] for name in toolkit.variables if os.environ.get(name)]
    bins = [os.path.join(hint, folder) for hint in hints for folder in ("bin", "")]
    path = [*bins, os.environ.get("PATH", ""), os.path.join(toolkit.folder, "bin")]
    return shutil.which(toolkit.compiler, path=os.pathsep.join(path))


def one_line(error: BaseException) -> str:
    """Type and message of an error, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

"""The build of the libraries, and what a built one exports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tools() -> dict[str, str]:
    """cmake and ninja; skips where one is missing."""
    scripts = Path(sysconfig.get_path("scripts"))
    folders = f"{scripts}:{os.defpath}"
    found = {name: shutil.which(name, path=folders) for name in ("cmake", "ninja")}
    if not all(found.values()):
        pytest.skip("needs cmake and ninja")
    return {name: str(path) for name, path in found.items()}


def configure(folder: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs CMake for a build in ``folder``."""
    import tvm_ffi.libinfo

    found = tools()
    return subprocess.run(
        [
            *(found["cmake"], "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *options),
            f"-DCMAKE_MAKE_PROGRAM={found['ninja']}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dtvm_ffi_DIR={tvm_ffi.libinfo.find_cmake_path()}",
        ],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
    )


def entries(path: Path) -> set[str]:
    """Entries that a library exports."""
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True
    )
    return set(re.findall(r"__tvm_ffi_(\w+)", symbols.stdout)) - {"_metadata_prefix"}

"""The MUSA branch of ``csrc/gpu`` as clang reads it against what ``musa_stubs/`` declares."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import musa_native
import pytest

STUBS = musa_native.TESTS / "musa_stubs"
# Kernels are parsed once for the device and once for the host.
DEVICE, HOST = "--cuda-device-only", "--cuda-host-only"


def _builtin_headers() -> str:
    """The folder of stddef.h and the like, which libclang comes without."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler whose headers clang could read")
    command = [compiler, "-print-file-name=include"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def errors(source: Path, side: str | None = None) -> list[str]:
    """What clang finds wrong in a source of MUSA; ``side`` for one with kernels."""
    cindex = pytest.importorskip("clang.cindex", reason="needs libclang (requirements/test.txt)")
    options = ["-x", "c++"]
    if side:
        options = ["-x", "cuda", side, "-nocudainc", "-nocudalib", "-D__MUSACC__"]
        options += ["--cuda-gpu-arch=sm_80", "-Wno-unknown-cuda-version"]
    options += ["-std=c++17", "-DMATE_MUSA", "-isystem", _builtin_headers()]
    options += [f"-I{STUBS}", f"-I{musa_native.CSRC}", *musa_native.tvm_ffi_options()[0]]
    parsed = cindex.Index.create().parse(str(source), args=options)
    return [str(d) for d in parsed.diagnostics if d.severity >= cindex.Diagnostic.Error]

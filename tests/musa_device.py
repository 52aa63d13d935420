"""The simulated Moore Threads device of ``fake_musa/``, for processes of their own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from musa_native import host_compiler, made_once, run
from torch.utils.cpp_extension import include_paths, library_paths

FOLDER = Path(__file__).resolve().parent / "fake_musa"
PACKAGES = FOLDER / "packages"
# Apart, since most tests are of a machine without it.
TILELANG = FOLDER / "tilelang_package"


def build(folder: Path) -> Path:
    """The device as a library in ``folder``, compiled where it is not there; skips without a
    compiler."""
    source = FOLDER / "device.cpp"
    state = source.read_bytes() + torch.__version__.encode()

    def make(_: Path, library: Path) -> None:
        command = [host_compiler(), "-O0", "-std=c++20", "-shared", "-fPIC", str(source)]
        command += [f"-I{path}" for path in include_paths()]
        command += [f"-L{path}" for path in library_paths()]
        run([*command, "-ltorch_cpu", "-lc10", "-o", str(library)])

    return made_once(folder / f"device-{hashlib.sha256(state).hexdigest()[:16]}.so", make)


def environment(device: Path, library: Path | None = None) -> dict[str, str]:
    """Variables of a process that shall find the device ``build`` made, and kernels for it."""
    kernels = {"FAKE_MUSA_LIBRARY": str(library)} if library else {}
    return {
        "FAKE_MUSA_DEVICE": str(device),
        **kernels,
        "OMP_NUM_THREADS": "1",
        # Triton and torch.compile know no such device: run the Python of both.
        "TRITON_INTERPRET": "1",
        "TORCH_COMPILE_DISABLE": "1",
    }

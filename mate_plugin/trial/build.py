"""Building the library for a kind of device from the sources, and keeping what the build said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mate_plugin.kernels import library

OPTIONS = {"cuda": "MATE_PLUGIN_CUDA", "musa": "MATE_PLUGIN_MUSA"}


@dataclass(frozen=True)
class Built:
    """Where the library was put, or None; and all that CMake and the compiler said."""

    path: Path | None
    log: str


def sources() -> Path | None:
    """The checkout that the package is imported from, or None."""
    import mate_plugin

    roots = (Path(path).parent for path in mate_plugin.__path__)
    return next((root for root in roots if (root / "CMakeLists.txt").is_file()), None)


def build(kind: str, source: Path) -> Built:
    """Build the library of one kind of device in a folder of its own, and put it beside the core.

    Args:
        kind: "cuda" or "musa".
        source: a checkout of mate-plugin.
    """
    core = library.find(library.LIBRARIES["cpu"])
    assert core is not None, "the doctor looks at the core first"
    name = library.LIBRARIES[kind]
    with tempfile.TemporaryDirectory(prefix="mate-plugin-build-") as folder:
        switches = [
            f"-D{option}={'ON' if key == kind else 'OFF'}" for key, option in OPTIONS.items()
        ]
        # tvm-ffi tells CMake where it is through the Python that has it.
        configure = ["cmake", "-S", str(source), "-B", folder, "-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dtvm_ffi_DIR={_tvm_ffi()}"]
        jobs = str(len(os.sched_getaffinity(0)))
        make = ["cmake", "--build", folder, "--target", f"mate_{kind}", "--parallel", jobs]
        log = ""
        for command in ([*configure, *switches], make):
            try:
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            except OSError as error:
                return Built(None, f"{log}{error}\n")
            log += f"$ {' '.join(command)}\n{done.stdout}"
            if done.returncode:
                # What the compiler said of a first file, which CMake only points to.
                trials = (path.read_text() for path in Path(folder).glob("*_trial.txt"))
                return Built(None, "\n".join((log, *trials)))
        found = next(Path(folder).rglob(name), None)
        if found is None:
            return Built(None, f"{log}no {name} was made\n")
        for made in (found, *Path(folder).glob(Path(name).with_suffix(".txt").name)):
            shutil.copy2(made, core.with_name(made.name))
    return Built(core.with_name(name), log)


def _tvm_ffi() -> str:
    command = [sys.executable, "-m", "tvm_ffi.config", "--cmakedir"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

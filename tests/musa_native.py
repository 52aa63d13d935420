"""The MUSA sources of ``csrc/gpu`` as a library, built by compilers that are not Moore Threads'.

``build_on_host`` makes g++ compile them against ``simt/``, where threads of a kernel run on the
host and device memory is the host's. ``build_for_nvidia`` makes nvcc compile them against
``musa_shim/``, where MUSA's names mean CUDA's; on a machine with an NVIDIA GPU

    python tests/musa_native.py FOLDER [ARCHITECTURE]

builds that library and prints its path.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
CSRC = TESTS.parent / "csrc"
SIMT = TESTS / "simt"
SHIM = TESTS / "musa_shim"
JOBS = 2


def sources() -> list[Path]:
    """What libmate_musa.so is made of, beside what stands for the runtime."""
    gpu = CSRC / "gpu"
    elsewhere = (gpu / "sm90a", gpu / "cuda")
    found = [p for end in ("*.cu", "*.cpp") for p in gpu.rglob(end) if p.parent not in elsewhere]
    return [CSRC / "api" / "count.cpp", *sorted(found)]


def state(*parts: str, folders: Iterable[Path] = ()) -> str:
    """A hash of commands and of all that csrc and other folders hold."""
    whole = hashlib.sha256("\0".join(parts).encode())
    for folder in (CSRC / "api", CSRC / "gpu", *folders):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            whole.update(str(path).encode() + path.read_bytes())
    for path in sorted(CSRC.glob("*.h")):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


def compile_all(
    files: Sequence[Path], folder: Path, command: Callable[[Path], Sequence[str]]
) -> list[str]:
    """The objects of ``command`` for each file, a few compiled at a time; the largest first."""
    objects = {p: str(folder / f"{p.parent.name}-{p.name}.o") for p in files}
    with ThreadPoolExecutor(JOBS) as pool:
        ordered = sorted(files, key=lambda p: -p.stat().st_size)
        list(pool.map(lambda p: run([*command(p), "-c", str(p), "-o", objects[p]]), ordered))
    return list(objects.values())


def made_once(library: Path, make: Callable[[Path, Path], None]) -> Path:
    """``library``, which ``make(folder for objects, path)`` writes where it is not there."""
    if not library.exists():
        folder = library.with_suffix(f".{os.getpid()}")
        folder.mkdir(parents=True)
        make(folder, folder / library.name)
        (folder / library.name).replace(library)
        shutil.rmtree(folder)
    return library


def tvm_ffi_options() -> tuple[list[str], list[str]]:
    """Options that find tvm-ffi for a compiler and for a linker."""
    import tvm_ffi.libinfo as info

    found = str(Path(info.find_libtvm_ffi()).parent)
    include = [f"-I{path}" for path in (info.find_include_path(), info.find_dlpack_include_path())]
    return include, [f"-L{found}", "-ltvm_ffi", f"-Wl,-rpath,{found}"]


def _instructions() -> str:
    """What -march=native stands for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def host_compiler() -> str:
    """g++, or what CXX names; skips without it."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler for what stands in for Moore Threads'")
    return compiler


def host_command() -> list[str]:
    """g++ and the options with which it compiles kernels for the host; skips without it."""
    # Products are rounded where the sources say so; jumps from stack to stack are meant.
    options = ["-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-U_FORTIFY_SOURCE"]
    options += ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DMATE_MUSA"]
    return [host_compiler(), "-x", "c++", *options, f"-I{SIMT}", f"-I{CSRC}"]


def build_on_host(folder: Path) -> Path:
    """libmate_musa.so for the host in a folder below ``folder``; skips without a compiler.

    ``MATE_TEST_SANITIZE=1`` makes it one for AddressSanitizer, which has to be loaded before Python
    is: ``LD_PRELOAD=$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0``.
    """
    include, link = tvm_ffi_options()
    compiler, *options = host_command()
    options += ["-fPIC", "-fvisibility=hidden", *include]
    if os.environ.get("MATE_TEST_SANITIZE"):
        options += ["-fsanitize=address", "-g1", "-fno-omit-frame-pointer"]
        link = [*link, "-fsanitize=address"]

    def make(objects: Path, library: Path) -> None:
        files = [*sources(), SIMT / "simt.cpp"]
        linked = compile_all(files, objects, lambda _: [compiler, *options])
        run([compiler, "-shared", *linked, *link, "-o", str(library)])

    name = state(compiler, *options, _instructions(), folders=[SIMT])
    return made_once(folder / f"host-{name}" / "libmate_musa.so", make)


def nvcc() -> str:
    """The compiler; skips without one."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if found is None:
        pytest.skip("no nvcc (PATH, CUDA_HOME, /usr/local/cuda)")
    return found


def nvcc_command(arch: str = "sm_80") -> list[str]:
    """nvcc and the options with which it compiles sources of MUSA for one NVIDIA GPU."""
    include = [f"-I{path}" for path in (SHIM, CSRC)] + tvm_ffi_options()[0]
    host = "-Xcompiler=-fPIC,-fvisibility=hidden"
    return [nvcc(), f"-arch={arch}", "-std=c++17", "-O3", host, "-DMATE_MUSA", *include]


def build_for_nvidia(folder: Path, arch: str = "sm_80") -> Path:
    """libmate_musa.so for an NVIDIA GPU in a folder below ``folder``; skips without nvcc."""
    command = nvcc_command(arch)

    def make(objects: Path, library: Path) -> None:
        linked = compile_all(sources(), objects, lambda _: command)
        # torch brings a CUDA runtime too, whose symbols must not take the place of ours.
        link = [option for option in tvm_ffi_options()[1] if not option.startswith("-Wl,")]
        flags = ["-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL"]
        run([command[0], f"-arch={arch}", *flags, *linked, *link, "-o", str(library)])

    name = state(*command, folders=[SHIM])
    return made_once(folder / f"nvidia-{name}" / "libmate_musa.so", make)


if __name__ == "__main__":
    print(build_for_nvidia(Path(sys.argv[1]), *sys.argv[2:]))

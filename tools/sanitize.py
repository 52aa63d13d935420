"""Build the core for AddressSanitizer and ThreadSanitizer, and run the kernels' tests with it.

python tools/sanitize.py [address] [thread] [arguments of pytest]

Each instruction set of this machine has its turn, or the one that MATE_PLUGIN_ISA names. Tests that
read or write past the end, race, or do what C++ leaves undefined fail with the sanitizer's report.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = {"address": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}
# Everything else in tests/ runs kernels, also what is added later.
NO_KERNELS = re.compile(
    "alias|architecture|bad|checks|cli|compile|config|cuda|demo|isas|layers|library|musa|plugin"
    "|readme|signatures|simt|sparse_vllm|tools|torch_model|trial|tvm_ffi|vendor"
)
EXAMPLES = "15"
# An odd number: units a power of two apart fall to different threads.
THREADS = "3"
ADDR_NO_RANDOMIZE = 0x0040000


def main(arguments: list[str]) -> int:
    chosen = [word for word in arguments if word in SANITIZERS] or list(SANITIZERS)
    options = [word for word in arguments if word not in SANITIZERS]
    results = [result for sanitizer in chosen for result in check(sanitizer, options)]
    print("\n" + "\n".join(f"{'passed' if ok else 'FAILED'}  {name}" for name, ok in results))
    return 0 if all(ok for _, ok in results) else 1


def check(sanitizer: str, options: list[str]) -> list[tuple[str, bool]]:
    """Build, then run the tests for each instruction set: (name, whether all is well)."""
    folder = ROOT / "build" / sanitizer
    step(f"Build for the {sanitizer} sanitizer")
    if not build(sanitizer, folder):
        return [(f"{sanitizer}, build", False)]
    if sanitizer == "thread":
        # ThreadSanitizer wants the addresses it knows; children inherit this.
        ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE)
    env = environment(sanitizer, folder)
    probe = run([sys.executable, "-m", "sanitized_tests"], env, subprocess.PIPE)
    if probe.returncode:
        print(probe.stdout + hint(probe.stdout), file=sys.stderr)
        return [(f"{sanitizer}, load", False)]
    forced = os.environ.get("MATE_PLUGIN_ISA")
    # The last line: warnings may come before it.
    isas = [forced] if forced else probe.stdout.splitlines()[-1].split()
    return [(f"{sanitizer}, {isa}", passes(sanitizer, folder, isa, env, options)) for isa in isas]


def build(sanitizer: str, folder: Path) -> bool:
    import tvm_ffi.libinfo

    scripts = Path(sysconfig.get_path("scripts"))
    command = [str(scripts / "cmake"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    command += [
        f"-DMATE_SANITIZE={sanitizer}",
        "-DMATE_PLUGIN_CUDA=OFF",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'lib'}",
        f"-DCMAKE_MAKE_PROGRAM={scripts / 'ninja'}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dtvm_ffi_DIR={tvm_ffi.libinfo.find_cmake_path()}",
    ]
    configured = run(command, None, subprocess.PIPE)
    if configured.returncode:
        print(configured.stdout, file=sys.stderr)
        return False
    return run([str(scripts / "cmake"), "--build", str(folder)]).returncode == 0


def environment(sanitizer: str, folder: Path) -> dict[str, str]:
    """The sanitizer's runtime before everything else, and what it reports into files."""
    # AddressSanitizer looks for the C++ runtime before Python has loaded anything that needs it.
    libraries = [*SANITIZERS[sanitizer], "libstdc++.so.6"]
    found = [run(["g++", f"-print-file-name={x}"], None, subprocess.PIPE) for x in libraries]
    log = f"log_path={folder / f'reports.{sanitizer}'}"
    suppressions = ROOT / "tools" / "thread_sanitizer.supp"
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(done.stdout.strip() for done in found),
        # Python leaks by design. The first report ends nothing, so that one run finds all.
        "ASAN_OPTIONS": f"detect_leaks=0:halt_on_error=0:{log}",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # A guess at the size of thread-local storage sometimes goes wrong and ends the process.
        # After a report on a mutex of torch's, no line of a core that is loaded later is found.
        "TSAN_OPTIONS": "intercept_tls_get_addr=0:report_mutex_bugs=0:"
        f"suppressions={suppressions}:{log}",
        "MATE_SANITIZED": str(folder),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")]),
        "MATE_TEST_EXAMPLES": os.environ.get("MATE_TEST_EXAMPLES", EXAMPLES),
        "OMP_NUM_THREADS": THREADS,
    }


def passes(sanitizer: str, folder: Path, isa: str, env: dict[str, str], options: list[str]) -> bool:
    step(f"Kernels of {isa} under the {sanitizer} sanitizer")
    start = time.monotonic()
    tests = [
        str(path)
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if not NO_KERNELS.search(path.stem)
    ]
    for report in folder.glob("reports.*"):
        report.unlink()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "sanitized_tests", *options, *tests]
    status = run(command, {**env, "MATE_PLUGIN_ISA": isa}).returncode
    print(f"{time.monotonic() - start:.0f} s", flush=True)
    # Reports from outside of tests, or of a process that has ended early, have failed no test.
    reports = list(folder.glob("reports.*"))
    if status != 1:
        print("".join(report.read_text(errors="replace") for report in reports), end="")
    return status == 0 and not reports


def hint(output: str) -> str:
    if "memory mapping" in output:
        return "Addresses could not be fixed here. Try `sysctl vm.mmap_rnd_bits=28` as root.\n"
    return "The core does not load under the sanitizer. Are libasan and libtsan there (g++)?\n"


def run(
    command: list[str], env: dict[str, str] | None = None, stdout: int | None = None
) -> subprocess.CompletedProcess[str]:
    """The output of a command with ``stdout=subprocess.PIPE`` holds its errors too."""
    stderr = subprocess.STDOUT if stdout else None
    return subprocess.run(command, env=env, stdout=stdout, stderr=stderr, text=True, cwd=ROOT)


def step(title: str) -> None:
    print(f"\n== {title}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

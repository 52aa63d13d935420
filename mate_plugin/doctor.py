"""``mate-plugin doctor``: what this machine offers, what is installed, and whether it works."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from mate_plugin import __version__
from mate_plugin.doctor_engines import engines, hooks
from mate_plugin.doctor_gpus import opt_ins
from mate_plugin.doctor_musa import vendor
from mate_plugin.findings import Finding, State, compiler, one_line, version

TORCH_RANGE = ((2, 7), (2, 15))
TVM_FFI_RANGE = ((0, 1, 9), (0, 2))


def examine() -> Iterator[Finding]:
    """All findings, each as soon as it is known."""
    yield from _look(_machine, _settings, _torch, _tvm_ffi, _core)
    yield from _look(_cuda, opt_ins, vendor, _openmp, engines, hooks, _alias, _self_test)


def base() -> Iterator[Finding]:
    """What every use of the package rests on, whatever the device."""
    yield from _look(_machine, _settings, _torch, _tvm_ffi, _core, vendor, _alias)


def _look(*looks: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    for look in looks:
        try:
            yield from look()
        except Exception as error:
            # The doctor reports on broken installations; one broken part must not hide the others.
            topic = look.__name__.strip("_").replace("_", "-")
            missing = isinstance(error, ModuleNotFoundError) and error.name
            fix = f"install {missing}" if missing else "reinstall what the error names"
            yield Finding(topic, "wrong", one_line(error), fix)


def show(findings: Iterator[Finding]) -> int:
    """Print ``findings``; returns 1 when something is wrong, else 0."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    styles = {"ok": "green", "note": "yellow", "wrong": "bold red"}
    wrong = 0
    for finding in findings:
        line = Text(f"{finding.state:<6}", style=styles[finding.state])
        console.print(line + Text(f"{finding.topic:<25} {finding.text}", style="default"))
        if finding.state == "wrong":
            wrong += 1
            console.print(Text(f"{'':<32}fix: {finding.fix}"))
    if wrong:
        console.print(f"{wrong} thing{'s' if wrong > 1 else ''} wrong")
    else:
        console.print("All is well")
    return 1 if wrong else 0


def _machine() -> Iterator[Finding]:
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    supported = platform.system() == "Linux" and platform.machine() in ("x86_64", "AMD64")
    fix = "" if supported else "the compiled core is built for Linux on x86-64"
    yield Finding("machine", "ok" if supported else "wrong", system, fix)
    fields = dict(re.findall(r"^(model name|flags)\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.M))
    known = ("avx2", "fma", "f16c", "avx512f", "avx512vbmi", "avx512_bf16", "amx_tile", "amx_bf16")
    flags = [flag for flag in known if flag in fields.get("flags", "").split()]
    cores = len(os.sched_getaffinity(0))
    memory = re.search(r"MemAvailable:\s*(\d+)", _read("/proc/meminfo"))
    free = f", {int(memory[1]) / 2**20:.1f} GiB of memory free" if memory else ""
    yield Finding("CPU", "ok", f"{fields.get('model name', 'unknown')}, {cores} cores{free}")
    yield Finding("CPU features", "ok", " ".join(flags) or "none that the kernels know")


def _settings() -> Iterator[Finding]:
    from mate_plugin.config import PREFIX, ConfigError, load

    names = sorted(name for name in os.environ if name.startswith(PREFIX))
    try:
        settings = load()
    except ConfigError as error:
        yield Finding("settings", "wrong", str(error), "correct the file or variable it names")
        return
    source = ", ".join(names) or "defaults"
    if settings.enabled:
        yield Finding("settings", "ok", f"mate-plugin {__version__}, {source}")
    else:
        yield Finding("settings", "note", f"the plugin is switched off ({source})")


def _torch() -> Iterator[Finding]:
    import torch

    text = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    low, high = TORCH_RANGE
    if low <= _release(torch.__version__)[:2] <= high:
        yield Finding("torch", "ok", text)
    else:
        yield Finding("torch", "wrong", text, f"install torch {_range(TORCH_RANGE)}")


def _tvm_ffi() -> Iterator[Finding]:
    found = version("apache-tvm-ffi")
    low, high = TVM_FFI_RANGE
    if found and low <= _release(found) < high:
        yield Finding("tvm-ffi", "ok", f"apache-tvm-ffi {found}")
    else:
        fix = "pip install 'apache-tvm-ffi>=0.1.9,<0.2'"
        yield Finding("tvm-ffi", "wrong", f"apache-tvm-ffi {found or 'is missing'}", fix)


def _core() -> Iterator[Finding]:
    from mate_plugin.kernels import library

    try:
        chosen, available = library.isa(), library.available_isas()
    except ImportError as error:
        yield Finding(
            "compiled core", "wrong", one_line(error), "make build, or reinstall the wheel"
        )
        return
    except ValueError as error:
        yield Finding("compiled core", "wrong", one_line(error), "unset or correct MATE_PLUGIN_ISA")
        return
    text = f"loaded; {chosen} in use, available: {', '.join(available)}"
    yield Finding("compiled core", "ok", text)


def _cuda() -> Iterator[Finding]:
    """The library for NVIDIA GPUs, which GPU there is, and which kernels serve it."""
    import torch

    from mate_plugin.kernels import library, select

    topic = "CUDA library"
    if reason := library.missing("cuda"):
        yield Finding(topic, "note", f"{reason}; {_nvcc()}")
        return
    built = library.build_note("cuda")
    choice = select.choose("ragged_m_gemm", "cuda")
    # "vendor" is a wish for another device.
    if choice.impl is None and re.search("MATE_PLUGIN_IMPL(?!=vendor)", choice.reason):
        yield Finding(topic, "wrong", choice.reason, "unset or correct MATE_PLUGIN_IMPL")
        return
    if choice.impl is None:
        yield Finding(topic, "note", f"{built}; {choice.reason}")
        return
    yield Finding(topic, "ok", f"{built}; {choice.impl} in use: {choice.reason}")
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        name = torch.cuda.get_device_name(index)
        impl = select.choose("ragged_m_gemm", f"cuda:{index}").impl
        text = f"{name}, compute capability {major}.{minor}: {impl or 'not served'}"
        yield Finding(f"GPU {index}", "ok" if impl else "note", text)


def _nvcc() -> str:
    """What is known of the compiler that builds the CUDA library."""
    nvcc = compiler("cuda")
    if nvcc is None:
        return "there is no nvcc here, which the CUDA toolkit brings"
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\S+?),", said)
    return f"{nvcc} is of release {release[1] if release else 'unknown'}"


def _openmp() -> Iterator[Finding]:
    """Runtimes that this process has mapped by now: two would fight for the cores."""
    paths = re.findall(r"\s(/\S+)$", _read("/proc/self/maps"), re.M)
    found = {p for p in paths if re.match(r"lib(gomp|iomp5|omp)[-.]", os.path.basename(p))}
    names = sorted({os.path.basename(path) for path in found})
    if len(found) == 1:
        yield Finding("OpenMP", "ok", f"one runtime, {names[0]}, shared with torch")
    else:
        shown = ", ".join(names) or "none"
        fix = "load one runtime only (look at LD_PRELOAD, and at packages that bring their own)"
        state: State = "wrong" if found else "note"
        yield Finding("OpenMP", state, f"expected one runtime, found {shown}", fix)


def _alias() -> Iterator[Finding]:
    try:
        mate = importlib.import_module("mate")
    except ImportError as error:
        fix = "reinstall mate-plugin with pip (its .pth file is missing), or repair the other mate"
        yield Finding("import mate", "wrong", one_line(error), fix)
        return
    where = getattr(mate, "__file__", None) or str(list(getattr(mate, "__path__", [])))
    if getattr(mate, "__mate_plugin__", False):
        yield Finding("import mate", "ok", f"ours ({where})")
    elif all(importlib.util.find_spec(f"mate.{name}") for name in ("gemm", "deep_gemm")):
        yield Finding("import mate", "ok", f"the vendor's ({where}); ours is mate_plugin.kernels")
    else:
        text = f"another library of that name ({where}); ours is mate_plugin.kernels"
        yield Finding("import mate", "note", text)


def _self_test() -> Iterator[Finding]:
    import torch

    from mate_plugin.kernels import select
    from mate_plugin.selftest import cases

    for name, test in cases():
        yield _verdict(name, test)
    if select.choose("ragged_m_gemm", "cuda").impl is None:
        return
    with torch.device("cuda"):
        for name, test in cases("cuda"):
            yield _verdict(f"{name}, GPU", test)


def _verdict(name: str, test: Callable[[], float]) -> Finding:
    from mate_plugin.selftest import TOLERANCE

    topic = f"test {name}"
    try:
        error = test()
    except Exception as failure:
        # Any failure of a kernel is a finding, whatever its kind.
        return Finding(topic, "wrong", one_line(failure), "report this with the lines above")
    if error <= TOLERANCE:
        return Finding(topic, "ok", f"relative error {error:.1e} against the reference")
    text = f"relative error {error:.1e} against the reference, expected at most {TOLERANCE:.0e}"
    return Finding(
        topic,
        "wrong",
        text,
        "try MATE_PLUGIN_ISA=scalar, or MATE_PLUGIN_IMPL=portable on a GPU, and report this",
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _range(bounds: tuple[tuple[int, ...], ...]) -> str:
    return " to ".join(".".join(map(str, bound)) for bound in bounds)

"""The CUDA library as it was built: no GPU is needed to look at it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from cmake_build import configure, entries

from mate_plugin.kernels import library, select

ROOT = Path(__file__).resolve().parent.parent
BUILD_FILES = (ROOT / "CMakeLists.txt", *(ROOT / "cmake").glob("*.cmake"))
# Entries for CPUs only.
HOST_ENTRIES = {
    *("isa", "available_isas", "fma_peak", "bf16_peak", "tile_peak", "read_bandwidth"),
    *("packs_weights", "has_codes_to_leave", "pack_weights", "fused_experts", "sparse_mla"),
}


def test_every_source_is_built() -> None:
    listed = set(re.findall(r"csrc/\S+\.(?:cpp|cu)", "".join(p.read_text() for p in BUILD_FILES)))
    found = {str(p.relative_to(ROOT)) for e in ("cpp", "cu") for p in ROOT.glob(f"csrc/**/*.{e}")}
    assert listed == found


@pytest.mark.parametrize("wanted", ["AUTO", "ON", "OFF"])
def test_the_build_says_what_it_decided(tmp_path: Path, wanted: str) -> None:
    old = tmp_path / "nvcc"
    old.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.8, V11.8.89'\n")
    old.chmod(0o755)
    option = f"-DMATE_PLUGIN_CUDA={wanted}"
    done = configure(tmp_path / "build", option, CUDACXX=str(old))
    reason = f"expected nvcc 12.8 or newer, found {old} (release 11.8)"
    if wanted == "ON":
        assert done.returncode != 0
        assert reason in " ".join(done.stderr.split())
        return
    assert done.returncode == 0, done.stderr
    state = "not built: " + (reason if wanted == "AUTO" else "MATE_PLUGIN_CUDA=OFF")
    assert f"libmate_cuda.so: {state}" in done.stdout
    assert (tmp_path / "build" / "libmate_cuda.txt").read_text() == state + "\n"


@pytest.fixture(scope="module")
def built() -> Path:
    """The library; a skip says why there is none."""
    reason = library.missing("cuda")
    if reason and "cannot compile" in reason:
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    return Path(str(library.find(library.LIBRARIES["cuda"])))


def disassembler() -> str:
    """cuobjdump, of the toolkit or of Triton."""
    triton = find_spec("triton")
    folders = [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    if triton and triton.origin:
        folders.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    tool = shutil.which("cuobjdump", path=os.pathsep.join(folders))
    if tool is None:
        pytest.skip("needs cuobjdump, which Triton and the CUDA toolkit bring")
    return tool


def test_it_needs_neither_a_driver_nor_a_runtime(built: Path) -> None:
    dump = subprocess.run(["readelf", "-d", str(built)], capture_output=True, text=True, check=True)
    needed = re.findall(r"NEEDED.*\[(.*)\]", dump.stdout)
    assert "libtvm_ffi.so" in needed
    for name in needed:
        assert not re.match(r"lib(cuda|torch|c10|python|gomp)", name), needed
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(built)], capture_output=True, text=True
    )
    assert not re.findall(r"\b(?:cuda|cu)[A-Z]\w*", symbols.stdout), "shows symbols of the runtime"


def test_it_has_the_entries_of_the_core(built: Path) -> None:
    core = library.find(library.LIBRARIES["cpu"])
    assert core is not None
    assert entries(core) - HOST_ENTRIES <= entries(built)


@pytest.mark.usefixtures("built")
def test_it_loads_without_a_gpu() -> None:
    code = "from mate_plugin.kernels import library; print(library.module('cuda').counters() == '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
    choice = select.choose("batched_gemm", "cuda")
    assert (
        choice.impl is not None or "sees no GPU" in choice.reason or "capability" in choice.reason
    )


def test_no_kernel_spills_registers(built: Path) -> None:
    usage = subprocess.run(
        [disassembler(), "-res-usage", str(built)], capture_output=True, text=True, check=True
    ).stdout
    spilling: set[str] = set()
    count, arch, name = 0, "", ""
    for line in usage.splitlines():
        if found := re.match(r"arch = (\w+)", line):
            arch = found[1]
        elif found := re.match(r" Function (\S+):", line):
            name = found[1]
        elif found := re.search(r"STACK:(\d+) .*LOCAL:(\d+)", line):
            count += 1
            if found[1] != "0" or found[2] != "0":
                spilling.add(f"{arch} {name}")
    assert count > 50
    assert not spilling


def test_hopper_runs_its_own_instructions(built: Path) -> None:
    """FP8 products of warpgroups, fed by the copy engine."""
    wanted = {"QGMMA", "UTMALDG"}
    with subprocess.Popen(
        [disassembler(), "-sass", "-arch", "sm_90a", str(built)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            wanted -= {word for word in wanted if word in line}
            if not wanted:
                process.kill()
                return
    assert not wanted

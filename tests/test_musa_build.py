"""The MUSA library as far as it can be built and looked at without Moore Threads' compiler."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import musa_native
import musa_syntax
import pytest
from cmake_build import ROOT, configure, entries, tools
from test_cuda_build import HOST_ENTRIES

from mate_plugin.kernels import library

KERNELS = [path for path in musa_native.sources() if path.suffix == ".cu"]
OTHERS = [path for path in musa_native.sources() if path.suffix == ".cpp"]
# Names that only CUDA has, as a call and as a header.
ONLY_CUDA = {
    "call": "void f(void** p) { cudaMalloc(p, 1); }",
    "header": "#include <mma.h>\n__global__ void f() { nvcuda::wmma::mem_row_major; }",
    "intrinsic": "__device__ unsigned f(unsigned x) { return __byte_perm(x, 0, 0x3210); }",
}

FOREIGN = r"\b(cuda|cu|musa)[A-Z_]\w*|\bnvcuda|__(nv|mt)_|\basm\b|cooperative_groups"


def named(path: Path) -> str:
    return str(path.relative_to(musa_native.CSRC))


def test_shared_sources_name_no_runtime() -> None:
    """What is CUDA's is in folders of its own, and in the two headers that choose."""
    gpu = musa_native.CSRC / "gpu"
    apart = {gpu / "cuda", gpu / "sm90a"}
    chooses = {gpu / "runtime.h", gpu / "device_api.h", *apart}
    found = [p for p in gpu.rglob("*.*") if not {p, p.parent} & (chooses | {gpu / "musa"})]
    assert len(found) > 40
    for path in found:
        code = re.sub(r"//.*|#include \"gpu/(cuda|musa)/.*", "", path.read_text())
        assert not re.search(FOREIGN, code), named(path)
        assert "<<<" not in code or path.name == "launch_kernel.h"


@pytest.mark.parametrize("side", [musa_syntax.DEVICE, musa_syntax.HOST])
@pytest.mark.parametrize("source", KERNELS, ids=named)
def test_clang_reads_kernels(source: Path, side: str) -> None:
    assert not musa_syntax.errors(source, side)


@pytest.mark.parametrize("source", OTHERS, ids=named)
def test_clang_reads_host_code(source: Path) -> None:
    assert not musa_syntax.errors(source)


@pytest.mark.parametrize("what", ONLY_CUDA)
def test_clang_finds_what_only_cuda_has(tmp_path: Path, what: str) -> None:
    source = tmp_path / "only_cuda.cu"
    source.write_text(f'#include "gpu/device_api.h"\n{ONLY_CUDA[what]}\n')
    assert musa_syntax.errors(source, musa_syntax.DEVICE)


def test_nvcc_builds_the_musa_branch(pytestconfig: pytest.Config) -> None:
    built = musa_native.build_for_nvidia(Path(pytestconfig.cache.mkdir("musa")))
    core = library.find(library.LIBRARIES["cpu"])
    assert core is not None
    assert entries(core) - HOST_ENTRIES <= entries(built)


def test_nvcc_finds_a_name_that_musa_has_not(tmp_path: Path) -> None:
    """The shim names what we use and nothing else."""
    source = tmp_path / "unnamed.cu"
    command = [*musa_native.nvcc_command(), "-c", str(source), "-o", str(tmp_path / "o")]
    header = '#include "gpu/runtime.h"\n'
    source.write_text(header + "auto* known = &MATE_RUNTIME(GetLastError);\n")
    musa_native.run(command)
    source.write_text(header + "auto* unnamed = &MATE_RUNTIME(MemPoolCreate);\n")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "musaMemPoolCreate" in done.stderr


def stand_in_for_mcc(home: Path, compiles: bool = True) -> None:
    mcc = home / "bin" / "mcc"
    mcc.parent.mkdir(parents=True)
    status = 0 if compiles else 1
    mcc.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--version*) echo "mcc version 4.3.1"; exit;; esac\n'
        f'echo "compiles: {compiles}"; exit {status}\n'
    )
    mcc.chmod(0o755)


@pytest.mark.parametrize("wanted", ["AUTO", "ON", "OFF"])
def test_the_build_says_what_it_decided(tmp_path: Path, wanted: str) -> None:
    stand_in_for_mcc(tmp_path / "musa", compiles=False)
    options = (f"-DMATE_PLUGIN_MUSA={wanted}", "-DMATE_PLUGIN_CUDA=OFF")
    done = configure(tmp_path / "build", *options, MUSA_HOME=str(tmp_path / "musa"))
    reason = f"{tmp_path}/musa/bin/mcc cannot compile here (see {tmp_path}/build/mcc_trial.txt)"
    if wanted == "ON":
        assert done.returncode != 0
        assert reason.replace(" ", "") in "".join(done.stderr.split())
        return
    assert done.returncode == 0, done.stderr
    state = "not built: " + (reason if wanted == "AUTO" else "MATE_PLUGIN_MUSA=OFF")
    assert f"libmate_musa.so: {state}" in done.stdout
    assert (tmp_path / "build" / "libmate_musa.txt").read_text() == state + "\n"


def test_the_build_compiles_every_source_for_musa(tmp_path: Path) -> None:
    stand_in_for_mcc(tmp_path / "musa")
    build = tmp_path / "build"
    done = configure(build, "-DMATE_PLUGIN_CUDA=OFF", MUSA_PATH=str(tmp_path / "musa"))
    assert done.returncode == 0, done.stderr
    note = (build / "libmate_musa.txt").read_text()
    assert note == "built with mcc 4.3.1 for mp_31 and newer\n"
    asked = subprocess.run(
        [tools()["ninja"], "-C", str(build), "-t", "commands", "libmate_musa.so"],
        capture_output=True,
        text=True,
        check=True,
    )
    commands = asked.stdout.splitlines()
    for source in musa_native.sources():
        (command,) = (line for line in commands if f"-c {source} " in f"{line} ")
        assert "-DMATE_MUSA" in command
        if source.suffix == ".cu":
            assert "-x musa --offload-arch=mp_31" in command
            assert "fast-math" not in command
            assert "-fno-signed-zeros" not in command
    assert "-lmusa -lmusart" in " ".join(commands[-1].split())
    assert not any(f"{ROOT}/csrc/gpu/{apart}" in asked.stdout for apart in ("cuda", "sm90a"))

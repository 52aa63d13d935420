"""Loading the core: instruction sets, threads, counters, and tensors of an old torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from mate_plugin.config import Settings
from mate_plugin.kernels import gemm, library, select


def in_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def small_product() -> tuple[torch.Tensor, torch.Tensor]:
    """A product by the core and the same in float64."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(7, 200, generator=generator).to(torch.float8_e4m3fn)
    b = torch.randn(40, 200, generator=generator).to(torch.float8_e5m2)
    scale_a, scale_b = torch.rand(7, 2, generator=generator), torch.rand(1, 2, generator=generator)
    wide_a = scale_a.double().repeat_interleave(128, 1)[:, :200]
    wide_b = scale_b.double().repeat_interleave(128, 1)[:, :200]
    expected = (a.double() * wide_a) @ (b.double() * wide_b).t()
    return gemm.gemm_fp8_nt_groupwise(a, b, scale_a, scale_b), expected


@pytest.mark.parametrize("name", library.available_isas())
def test_an_instruction_set_can_be_forced(name: str) -> None:
    code = "from mate_plugin.kernels import library; print(library.isa())"
    assert in_process(code, MATE_PLUGIN_ISA=name).stdout.strip() == name


def test_an_unknown_instruction_set_is_refused() -> None:
    code = "from mate_plugin.kernels import library; library.isa()"
    ran = in_process(code, MATE_PLUGIN_ISA="sse9")
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()[-1]
    known = re.search(r"ValueError: MATE_PLUGIN_ISA: expected one of (.*), got 'sse9'", last)
    assert known
    assert {"auto", *known[1].split(",")} == set(
        get_args(Settings.model_fields["kernel"].annotation)
    )


def test_a_processor_without_avx2_runs_the_scalar_kernels() -> None:
    emulator = Path("/usr/bin/qemu-x86_64")
    if not emulator.exists():
        pytest.skip("needs qemu-user to run on a processor without AVX2")
    code = """
import torch
from mate_plugin.kernels import gemm, library
a, b = torch.ones(5, 200), torch.ones(40, 200).to(torch.float8_e4m3fn)
out = gemm.gemm_w8a16_nt_groupwise(a, b, torch.full((1, 2), 0.5))
print(library.isa(), float(out.min()), float(out.max()))
"""
    command = [str(emulator), "-cpu", "Nehalem", sys.executable, "-c", code]

    def run(isa: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MATE_PLUGIN_ISA": isa}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert run("").stdout.split() == ["scalar", "100.0", "100.0"]
    assert "this machine cannot run 'avx2'" in run("avx2").stderr


def test_one_openmp_runtime_and_torchs_number_of_threads() -> None:
    code = """
import os, torch
from mate_plugin.kernels import gemm, library
def run():
    a = torch.ones(64, 512, dtype=torch.bfloat16)
    b = torch.ones(2048, 512).to(torch.float8_e4m3fn)
    gemm.gemm_w8a16_nt_groupwise(a, b, torch.ones(16, 4))
    return len(os.listdir("/proc/self/task"))
torch.set_num_threads(1)
before = run()  # torch may start helpers of its own at the first call
one = run()
torch.set_num_threads(3)
three = run()
maps = open("/proc/self/maps").read()
runtimes = {line.split()[-1] for line in maps.splitlines() if any(
    name in line for name in ("libgomp", "libiomp", "libomp"))}
print(one - before, three - one, len(runtimes), library.threads(None), library.threads(2))
"""
    ran = in_process(code)
    assert ran.stdout.split() == ["0", "2", "1", "3", "2"], ran.stdout + ran.stderr


def test_counters_count_compiled_calls() -> None:
    library.reset_counters()
    small_product()
    small_product()
    (row,) = library.counters()
    assert (row["op"], row["impl"], row["calls"]) == ("batched_gemm", library.isa(), 2)
    assert row["seconds"] > 0
    library.reset_counters()
    assert library.counters() == []


def test_fp8_tensors_can_cross_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, expected = small_product()
    monkeypatch.setattr(library, "_FP8_AS_BYTES", True)
    as_bytes, _ = small_product()
    assert torch.equal(plain, as_bytes)
    torch.testing.assert_close(plain.double(), expected, rtol=1e-2, atol=1e-2)


def test_other_devices_are_refused_with_a_reason() -> None:
    assert select.choose("batched_gemm", "cpu").impl == library.isa()
    assert select.choose("batched_gemm", "meta").impl is None
    a = torch.empty(2, 128, dtype=torch.bfloat16, device="meta")
    b = torch.empty(4, 128, dtype=torch.float8_e4m3fn, device="meta")
    with pytest.raises(NotImplementedError, match="batched_gemm: not available on 'meta'"):
        gemm.gemm_w8a16_nt_groupwise(a, b, torch.empty(1, 1, device="meta"))
    with pytest.raises(NotImplementedError, match="no kernels for device 'xpu'"):
        library.module("xpu")


def test_a_missing_library_says_why_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mate_plugin

    monkeypatch.setattr(mate_plugin, "__path__", [str(tmp_path)])
    monkeypatch.setattr(library, "_loaded", {})
    assert "install mate-plugin with pip" in str(library.missing("cpu"))
    assert "the build left no word about it" in str(library.missing("cuda"))
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libmate_cuda.txt").write_text("not built: no nvcc was found\n")
    with pytest.raises(ImportError, match=r"libmate_cuda.so is missing \(not built: no nvcc was"):
        library.module("cuda")
    choice = select.choose("batched_gemm", "cuda")
    assert choice.impl is None
    assert "nvcc 12.8 or newer" in choice.reason


def test_processors_of_a_call() -> None:
    x = torch.zeros(1)
    most = torch.get_num_threads()
    assert library.threads(None, x) == library.threads(None) == most
    assert library.threads(1, x) == 1
    assert library.threads(most + 5, x) == most
    assert library.stream(x) == 0
    assert library.processors(x.device) == most
    elsewhere = torch.zeros(1, device="meta")
    assert library.threads(None, elsewhere) == 0
    assert library.threads(7, elsewhere) == 7

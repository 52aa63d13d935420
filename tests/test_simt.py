"""The threads that stand for a GPU's (``simt/``) and what the kernels ask of a device."""

from __future__ import annotations

import subprocess
from pathlib import Path

import musa_native
import pytest


def compiled(folder: Path, *options: str) -> Path:
    program = folder / "selftest"
    files = [musa_native.SIMT / "simt.cpp", musa_native.SIMT / "selftest.cpp"]
    files.append(musa_native.CSRC / "gpu" / "launch.cpp")
    command = [*musa_native.host_command(), *options, *map(str, files), "-o", str(program)]
    musa_native.run(command)
    return program


@pytest.fixture(scope="module")
def selftest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("simt"))


def said(program: Path, case: str) -> str:
    done = subprocess.run([str(program), case], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_threads_exchange_values(selftest: Path) -> None:
    assert said(selftest, "sums") == f"{sum(range(256))} {sum(range(256, 512))}"


def test_threads_that_have_returned_are_not_waited_for(selftest: Path) -> None:
    assert said(selftest, "few") == str(0b10101)


def test_a_missing_barrier_shows(selftest: Path) -> None:
    """Whichever threads come too early, in some block it is their turn first."""
    assert said(selftest, "no barrier") == "1 1"


@pytest.mark.parametrize("what", ["calls", "barriers"])
def test_threads_that_wait_in_different_calls_are_found(selftest: Path, what: str) -> None:
    wanted = "simulated kernel: threads wait for one another in different calls"
    assert said(selftest, f"different {what}") == wanted


def test_a_launch_that_no_device_takes_fails(selftest: Path) -> None:
    assert said(selftest, "too many threads") == "too many: invalid argument"


def test_launches_are_recorded_and_run_again(selftest: Path) -> None:
    """Two pieces of work, nothing done until they run, and each run sees the memory of then."""
    assert said(selftest, "recorded") == "2 5 64 128"


def test_devices_before_mp31_are_refused(selftest: Path, tmp_path: Path) -> None:
    assert said(selftest, "device") == "6"
    older = compiled(tmp_path, "-DSIMT_CAPABILITY=22")
    wanted = "expected a device of compute capability 3.1 or newer with warps of 32 threads"
    assert said(older, "device") == f"{wanted}, got 2.2 with warps of 32"

"""``mate-plugin doctor --device``: what it tries, and what it makes of a device that misbehaves."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import musa_device
import musa_native
import pytest
import torch

from mate_plugin.kernels.tilelang import cache
from mate_plugin.trial import child, report, run
from mate_plugin.trial.cases import CASES, SMALL, Case

BY_NAME = {case.name: case for case in CASES}
GEMM, INDEX = BY_NAME["gemm_fp8_nt_groupwise"], BY_NAME["index_topk"]
NAN, INF = float("nan"), float("inf")
Doctor = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    """Runs the command in an empty folder."""

    def start(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mate_plugin.cli", "doctor", *arguments],
            cwd=tmp_path,
            env=os.environ | env,
            capture_output=True,
            text=True,
        )

    return start


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_the_same_each_time_and_runs_the_entry_that_it_names(case: Case) -> None:
    first, impl = child.served(case, case.on("cpu", SMALL))
    assert impl not in ("none", "")
    again = case.on("cpu", SMALL)
    second, third = again(), [x.clone() for x in again()]
    for x, y, z in zip(first, second, third, strict=True):
        assert child.compare(case, (x,), (y,))[0] == 0
        assert child.compare(case, (y,), (z,))[0] == 0


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1.0, NAN], [1.0, 2.0], INF),
        ([1.0, 2.0], [1.0, NAN], INF),
        ([NAN, -INF], [NAN, -INF], 0.0),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([1.0, 2.0, 3.0], [1.0, 2.0], INF),
    ],
)
def test_errors_are_over_the_largest_value(found, expected, error) -> None:
    pair = child.compare(GEMM, (torch.tensor(found),), (torch.tensor(expected),))
    assert pair[0] == error
    assert pair[1] == 1e-3 or error == INF


def test_the_output_that_is_furthest_off_counts() -> None:
    good, bad = torch.ones(8), torch.ones(8)
    bad[3] = 2
    assert child.compare(GEMM, (good, bad), (good, good))[0] == 1
    assert child.compare(GEMM, (bad, good), (good, good))[0] == 1
    codes = torch.arange(200)
    wrong = codes.clone()
    wrong[0] = 7
    assert child.compare(GEMM, (wrong,), (codes,)) == (1 / 200, 0.0)
    assert child.compare(INDEX, (wrong,), (codes,)) == (1 / 200, 0.01)


MISBEHAVES = """
import os, sys, time
main = sys.modules["__main__"]
def tried(case, device, timed):
    if case.name == "top_k":
        print("last words", flush=True)
        os.abort()
    if case.name == "route":
        time.sleep(600)
    if case.name == "permute":
        raise RuntimeError("a kernel says no")
    if case.name == "unpermute":
        raise NotImplementedError("moe_unpermute: not available on 'musa': so it is")
    return {"impl": os.environ["MATE_PLUGIN_IMPL"], "error": 0.5, "tolerance": len(case.name) / 30}
main.tried = tried
"""


def test_what_crashes_or_hangs_does_not_end_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch_musa.py").write_text(MISBEHAVES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(run, "PATIENCE", 30.0)
    results = {result.case: result for result in run.trial("musa", "portable")}
    assert list(results) == [case.name for case in CASES]
    assert results["top_k"].problem == "the process ended: signal SIGABRT\nlast words"
    assert results["route"].problem == "no answer within 30 s"
    assert results["permute"].problem == "RuntimeError: a kernel says no"
    assert results["unpermute"].refused == "moe_unpermute: not available on 'musa': so it is"
    assert not results["unpermute"].problem
    assert results["bmm_fp8"].problem == "error 5.0e-01, expected at most 2e-01"
    assert not results["silu_and_mul_quant_fp8"].problem
    assert {result.impl for result in results.values()} == {"portable", ""}


def test_a_device_that_cannot_be_used_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch_musa.py").write_text("raise OSError('no driver')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(run.TrialError, match="no driver"):
        list(run.trial("musa", "vendor"))
    with pytest.raises(
        ValueError, match="impl: expected one of vendor, tilelang, portable, got 'amx'"
    ):
        list(run.trial("musa", "amx"))


def test_the_simulated_device_from_end_to_end(
    doctor: Doctor, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = Path(request.config.cache.mkdir("musa"))
    device, library = musa_device.build(folder), musa_native.build_on_host(folder)
    packages = os.pathsep.join(map(str, (musa_device.PACKAGES, musa_device.TILELANG)))
    env = musa_device.environment(device, library) | {"PYTHONPATH": packages}
    done = doctor("--device", "musa", "--untimed", "--report", "told.json", **env)
    assert "1 x simulated, compute capability 3.1, 6 multiprocessors" in done.stdout
    assert "The report is in told.json" in done.stdout
    told = json.loads((tmp_path / "told.json").read_text())
    ours = [result for result in told["results"] if result["wanted"] == "portable"]
    assert {result["case"] for result in ours} == set(BY_NAME)
    assert {result["impl"] for result in ours} == {"portable"}
    assert all(0 <= result["error"] <= result["tolerance"] for result in ours)
    assert not any("problem" in result for result in ours)
    tiles = [result for result in told["results"] if result["wanted"] == "tilelang"]
    assert {BY_NAME[result["case"]].op for result in tiles} == {"ragged_m_gemm", "masked_gemm"}
    served = {result["case"]: result for result in tiles if "refused" not in result}
    assert {"ragged_m_moe_gemm_8bit, per_token", "masked_moe_gemm_8bit"} <= set(served)
    assert {result["impl"] for result in served.values()} == {"tilelang"}
    assert not any("problem" in result for result in served.values())
    assert "cases MATE_PLUGIN_IMPL=tilelang, but TileLang: the rows are packed" in done.stdout
    assert told["device"] == "musa"
    assert {"topic", "state", "text", "fix"} == set(told["findings"][0])


def test_tilelang_is_tried_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "why_not", lambda *_: "tilelang cannot be imported (so it is)")
    monkeypatch.setattr(report, "trial", lambda *_: pytest.fail("tried"))
    (finding,) = report.Examination("cuda", None)._trial("tilelang")
    assert (finding.topic, finding.state) == ("tilelang", "note")
    assert finding.text == "tilelang cannot be imported (so it is)"


def test_times_are_those_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now, calls = 0.0, 0

        def __call__(self) -> None:
            self.calls += 1
            self.now += 0.01

    clock = Clock()
    monkeypatch.setattr(child.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert math.isclose(child.seconds(clock, "cuda"), 0.01)
    assert clock.calls > 5


def test_no_device_is_a_report_too(doctor: Doctor, tmp_path: Path) -> None:
    done = doctor("--device", "musa")
    assert done.returncode == 1
    assert "No module named 'torch_musa'" in done.stdout
    told = json.loads((tmp_path / "mate-plugin-musa.json").read_text())
    assert told["results"] == []
    assert [f["topic"] for f in told["findings"] if f["state"] == "wrong"] == ["device"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "tpu"), "--device: expected one of cuda, musa, got 'tpu'"),
        (("--rebuild",), "expected --device beside them"),
        (
            ("--device", "musa", "--report", "no/such/place.json"),
            "--report: expected a file in a folder that exists, got no/such/place.json",
        ),
        (
            ("--device", "musa", "--source", "."),
            "--source: expected a checkout with a CMakeLists.txt, got .",
        ),
    ],
)
def test_bad_input_writes_nothing(
    doctor: Doctor, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = doctor(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())

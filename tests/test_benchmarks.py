"""The benchmarks that users are pointed to run, on sizes that say nothing about speed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run(script: str, *options: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options],
        env={**os.environ, "COLUMNS": "200", **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_roofline_writes_numbers_and_a_figure_where_it_can(tmp_path: Path) -> None:
    sizes = ("-n", "128", "-k", "256", "--experts", "8", "--busy", "3", "--rows", "1,4")
    said = run("roofline.py", *sizes, "--isa", "avx2", "--budget", "0.01", "--out", str(tmp_path))
    result = json.loads((tmp_path / "roofline-avx2.json").read_text())
    assert result["isa"] == "avx2"
    assert result["limits"]["fma"] > 0
    assert result["limits"]["tile"] is None
    points = {(one["name"], one["m"]): one for one in result["points"]}
    for m in (1, 4):
        assert points["fp8 x bf16", m]["ours"]
        assert points["f32 matmul, f32 weights", m]["seconds"] > 0
    with (tmp_path / "roofline-avx2.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(points)
    assert ("roofline.py plot" in said) is not (tmp_path / "roofline-avx2.png").exists()


def test_roofline_refuses_an_instruction_set_that_the_machine_lacks() -> None:
    with pytest.raises(AssertionError, match="expected any of"):
        run("roofline.py", "--isa", "mmx")


def test_a_layer_beside_its_peer_gives_the_same_numbers_and_both_times() -> None:
    sizes = ("--experts", "4", "--hidden", "256", "--intermediate", "128", "--topk", "2")
    said = run("cpu_moe.py", *sizes, "--tokens", "1,3", "--layers", "2", "--budget", "0.01")
    assert said.count("ours, fp8 weights, bf16 activations") == 2
    assert "cpu_fused_moe" in said or "expert by expert" in said


def test_the_cost_of_a_call_is_told_for_each_function() -> None:
    said = run("call_overhead.py", "--rounds", "2")
    for name in ("ragged_m_moe_gemm_8bit", "masked_moe_gemm_8bit", "bmm_fp8"):
        assert name in said

"""Counts, explanations and the dump."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from layer_oracle import MoeWeights, quantise

from mate_plugin import report
from mate_plugin.layers.experts import Experts
from mate_plugin.layers.linear import BlockLinear


@pytest.fixture(autouse=True)
def _own_counts(monkeypatch):
    monkeypatch.setattr(report, "_layers", {})
    monkeypatch.setattr(report, "_hooks", {})


def counts() -> dict[tuple[str, str], tuple[int, int]]:
    return {(one.kind, one.shape): (one.built, one.calls) for one in report.layers()}


def test_layers_are_counted_by_kind_and_shape():
    linears = [BlockLinear(*quantise(torch.randn(40, 72))) for _ in range(2)]
    weights = MoeWeights(3, 64, 40)
    experts = Experts(*weights.stored)
    x = torch.randn(5, 72).to(torch.bfloat16)
    for linear in linears:
        linear(x)
    linears[0](x)
    hidden = torch.randn(5, 64).to(torch.bfloat16)
    experts.apply(hidden, torch.rand(5, 2), torch.randint(0, 3, (5, 2)))
    assert counts() == {("linear", "40x72"): (2, 3), ("moe", "3x64x40"): (1, 1)}
    report.reset()
    assert counts() == {("linear", "40x72"): (2, 0), ("moe", "3x64x40"): (1, 0)}


def test_compiled_graphs_are_counted_when_they_run():
    linear = BlockLinear(*quantise(torch.randn(40, 72)))
    compiled = torch.compile(linear, fullgraph=True)
    x = torch.randn(5, 72).to(torch.bfloat16)
    for _ in range(3):
        compiled(x)
    assert counts() == {("linear", "40x72"): (1, 3)}


def test_explain_names_hooks_layers_and_kernels():
    report.record_hook(report.Hook("vllm.moe", False, "expected vLLM 0.32, found 0.1"))
    BlockLinear(*quantise(torch.randn(40, 72)))(torch.randn(5, 72).to(torch.bfloat16))
    text = report.explain()
    assert "vllm.moe: not installed (expected vLLM 0.32, found 0.1)" in text
    assert "linear 40x72: 8-bit x 16-bit" in text
    assert "batched_gemm [" in text


def run(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_each_process_keeps_a_file_also_after_a_fork(tmp_path):
    done = run(
        f"""
        import os, time
        from pathlib import Path
        from mate_plugin import report
        report.INTERVAL_S = 0.1
        report.start(Path({str(tmp_path)!r}))
        report.start(Path({str(tmp_path)!r}))
        child = os.fork()
        if child == 0:
            report.layer_called("moe", "in the child")
            time.sleep(0.5)
            os._exit(0)
        report.layer_called("moe", "in the parent")
        os.waitpid(child, 0)
        print(child, os.getpid())
        """
    )
    assert done.returncode == 0, done.stderr
    child, parent = done.stdout.split()
    shapes = {
        path.stem: [one["shape"] for one in json.loads(path.read_text())["layers"]]
        for path in tmp_path.glob("*.json")
    }
    assert shapes == {child: ["in the child"], parent: ["in the parent"]}
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".json"]

"""Stages read from a log, and what a terminal and a pipe see of them."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from mate_plugin.demo.counts import KernelCount, read_counts, since
from mate_plugin.demo.display import Display
from mate_plugin.demo.engines import SGLANG, VLLM
from mate_plugin.demo.server import free_port, last_lines, stage_of


def shown(terminal: bool) -> str:
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=terminal, width=80, highlight=False))
    with display.stages("starting [engine]") as stages:
        stages("loading weights")
    display.kernels([KernelCount("ragged_m_gemm", "avx2", 12, 0.5)])
    return out.getvalue()


def test_a_pipe_gets_plain_lines() -> None:
    text = shown(terminal=False)
    assert "\x1b" not in text
    assert text.splitlines()[:2] == ["  starting [engine] ...", "  loading weights ... (0 s)"]
    row = next(line for line in text.splitlines() if "ragged_m_gemm" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "ragged_m_gemm",
        "avx2",
        "12",
        "500.0",
    ]


def test_a_terminal_gets_a_live_line_and_keeps_finished_stages() -> None:
    text = shown(terminal=True)
    assert "\x1b" in text
    assert "  starting [engine] (0.0 s)" in text


def test_stage_is_the_furthest_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert stage_of(log, VLLM) == ""
    assert last_lines(log) == []
    log.write_text("INFO Loading weights took 3 s\n\nINFO Starting to load model again\n\n")
    assert stage_of(log, VLLM) == "preparing weights"
    assert stage_of(log, SGLANG) == ""
    assert last_lines(log, 1) == ["INFO Starting to load model again"]
    log.write_text("[1] server_args={}\n[2] Load weight begin.\n[3] Load weight end.\n")
    assert stage_of(log, SGLANG) == "warming up"


def test_counts_sum_over_processes(tmp_path: Path) -> None:
    def write(name: str, calls: int) -> None:
        rows = [{"op": "gemm", "impl": "avx2", "calls": calls, "seconds": calls / 10}]
        (tmp_path / f"{name}.json").write_text(json.dumps({"counters": rows}))

    write("1", 2)
    before = read_counts(tmp_path)
    write("2", 3)
    assert read_counts(tmp_path) == [KernelCount("gemm", "avx2", 5, 0.5)]
    assert since(before, read_counts(tmp_path))[0].calls == 3
    assert since(before, before) == []


def test_free_ports_are_free() -> None:
    assert 1024 <= free_port() <= 65535

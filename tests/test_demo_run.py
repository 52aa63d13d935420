"""The demonstration against stand-ins for engines: what it prints, and that nothing is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mate_plugin.demo import engines
from mate_plugin.demo.server import free_port

pytest.importorskip("openai")
ROOT = Path(__file__).resolve().parent.parent
FAKES = ROOT / "tests" / "fake_engines"
FAKE_PATH = os.pathsep.join(str(FAKES / name) for name in ("common", "vllm", "sglang"))
ENGINES = ("vllm", "sglang")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return tmp_path


def start(work: Path, mode: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    ours = ("MATE_PLUGIN_", "SGLANG_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environ |= {
        "PYTHONPATH": FAKE_PATH,
        "FAKE_ENGINE": mode,
        "FAKE_ENGINE_PIDS": str(work / "pids"),
        "TMPDIR": str(work / "tmp"),
        **variables,
    }
    command = [sys.executable, "-m", "mate_plugin.cli", "demo", "--size", "tiny", *arguments]
    return subprocess.Popen(
        command,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=60)
    return process.returncode, out, error


def nothing_left(work: Path) -> None:
    if (work / "pids").exists():
        for pid in (work / "pids").read_text().split():
            assert not running(int(pid)), f"process {pid} is left"
    assert list((work / "tmp").glob("mate-plugin-demo-*")) == []


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("engine", ENGINES)
def test_answer_rate_and_table(work: Path, engine: str) -> None:
    code, out, error = finish(start(work, "well", "--engine", engine))
    assert code == 0, out + error
    assert "Answer:   ka lo mi" in out
    assert "3 tokens in" in out
    row = next(line for line in out.splitlines() if "ragged_m_gemm" in line)
    assert "avx2" in row
    # Only what ran during the chat counts: 107 calls in all, 7 of them before.
    assert "100" in row
    assert {"vllm": "building the model", "sglang": "loading weights"}[engine] in out
    nothing_left(work)


@pytest.mark.parametrize("engine", ENGINES)
def test_server_that_fails_shows_its_last_lines(work: Path, engine: str) -> None:
    code, out, error = finish(start(work, "broken", "--engine", engine))
    assert code == 1
    assert "| ValueError: the seam came apart" in out
    assert error.strip() == "mate-plugin: the server ended with status 3"
    nothing_left(work)


def test_kernels_that_do_not_run_are_a_failure(work: Path) -> None:
    code, out, error = finish(start(work, "idle"))
    assert code == 1
    assert "ka lo mi" in out
    assert "none of our kernels ran" in error
    nothing_left(work)


@pytest.mark.parametrize("engine", ENGINES)
def test_start_that_takes_too_long_is_ended(work: Path, engine: str) -> None:
    code, _, error = finish(start(work, "slow", "--timeout", "3", "--engine", engine))
    assert code == 1
    assert "not ready after 3 s (stage: setting up the engine)" in error
    nothing_left(work)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_stops_every_process(work: Path, number: int) -> None:
    process = start(work, "slow")
    end = time.monotonic() + 30
    while not (work / "pids").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    code, _, error = finish(process)
    assert code == 130
    assert "interrupted" in error
    nothing_left(work)


def test_keep_leaves_checkpoint_and_log(work: Path) -> None:
    code, out, _ = finish(start(work, "well", "--keep", "--model", "qwen3-moe"))
    assert code == 0
    (kept,) = (work / "tmp").glob("mate-plugin-demo-*")
    assert f"Kept {kept}" in out
    assert (kept / "model" / "config.json").is_file()
    assert (kept / "server.log").is_file()


@pytest.mark.parametrize(
    ("family", "variables", "settings"),
    [
        ("deepseek-v3", {}, "deepseek_v3"),
        ("deepseek-v3.2", {}, "deepseek_v32"),
        ("qwen3-moe", {}, "qwen3_moe"),
        ("qwen3-moe", {"MATE_PLUGIN_CONFIG": "default"}, "default"),
    ],
)
def test_server_gets_the_settings_of_the_family_unless_others_are_set(
    work: Path, family: str, variables: dict[str, str], settings: str
) -> None:
    process = start(work, "well", "--keep", "--model", family, **variables)
    code, out, error = finish(process)
    assert code == 0, out + error
    assert f"(eager, settings {settings})" in out
    (log,) = (work / "tmp").glob("mate-plugin-demo-*/server.log")
    assert f"MATE_PLUGIN_CONFIG={settings}\n" in log.read_text()


@pytest.mark.parametrize(
    ("variables", "platform"),
    [({}, "mate_cpu"), ({"SGLANG_PLATFORM": "other"}, "other")],
)
def test_sglang_gets_our_platform_unless_another_is_set(
    work: Path, variables: dict[str, str], platform: str
) -> None:
    arguments = ("--keep", "--engine", "sglang", "--port", str(free_port()))
    process = start(work, "well", *arguments, **variables)
    code, out, error = finish(process)
    assert code == 0, out + error
    assert f"Starting SGLang's OpenAI server on http://127.0.0.1:{arguments[-1]} (eager" in out
    (log,) = (work / "tmp").glob("mate-plugin-demo-*/server.log")
    text = log.read_text()
    assert f"SGLANG_PLATFORM={platform}\n" in text
    assert "HF_HUB_OFFLINE=1\n" in text
    assert "--context-length 2048 " in text
    assert "--max-total-tokens 8192\n" in text


def test_vllm_is_the_engine_where_both_are_installed(work: Path) -> None:
    code, out, error = finish(start(work, "well"))
    assert code == 0, out + error
    assert "Starting vLLM's OpenAI server" in out


@pytest.mark.parametrize(
    ("installed", "wanted", "expected"),
    [
        (("vllm", "sglang"), None, "vllm"),
        (("sglang",), None, "sglang"),
        (("vllm", "sglang"), "sglang", "sglang"),
        ((), None, "--engine: expected one of vllm, sglang to be installed, found none"),
        (("vllm",), "sglang", "sglang is not installed (`make demo-sglang` in a checkout"),
        (("sglang",), "vllm", "vllm is not installed (`make demo` in a checkout"),
        (("vllm",), "tgi", "--engine: expected one of vllm, sglang, found 'tgi'"),
    ],
)
def test_engine_is_the_one_asked_for_or_the_first_installed(
    monkeypatch: pytest.MonkeyPatch,
    installed: tuple[str, ...],
    wanted: str | None,
    expected: str,
) -> None:
    monkeypatch.setattr(engines.Engine, "installed", lambda self: self.name in installed)
    if expected in ENGINES:
        assert engines.choose(wanted).name == expected
    else:
        with pytest.raises(engines.EngineError) as caught:
            engines.choose(wanted)
        assert expected in str(caught.value)


def test_question_to_a_sparse_model_is_longer_than_what_attention_reads(work: Path) -> None:
    code, out, _ = finish(start(work, "well", "--model", "deepseek-v3.2", "--size", "small"))
    assert code == 0
    said = re.search(r"has (\d+) tokens, of which each token attends to (\d+) at most", out)
    assert said is not None
    assert int(said[1]) > int(said[2]) == 128


def test_prompt_is_asked_as_given(work: Path) -> None:
    code, out, _ = finish(start(work, "well", "--model", "deepseek-v3.2", "--prompt", "Well?"))
    assert code == 0
    assert "Question: Well?" in out
    assert "The question has 5 tokens" in out


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "said"),
    [
        (
            ["--model", "nowhere"],
            {},
            1,
            "--model: expected deepseek-v3, deepseek-v3.2, qwen3-moe or a folder",
        ),
        (["--model", "tests"], {}, 1, "config.json: expected a file, found none"),
        ([], {"MATE_PLUGIN_STRCT": "1"}, 2, "did you mean 'MATE_PLUGIN_STRICT'?"),
        ([], {"MATE_PLUGIN_STRICT": "x"}, 2, "strict: expected true or false, found 'x'"),
        (
            ["--engine", "sglang", "--compile"],
            {},
            1,
            "--compile: expected --eager with SGLang, which runs no other way",
        ),
        (["--engine", "tgi"], {}, 1, "--engine: expected one of vllm, sglang, found 'tgi'"),
        (["--size", "huge"], {}, 1, "--size: expected one of tiny, small, found 'huge'"),
    ],
)
def test_bad_input_stops_before_the_server(
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environ: dict[str, str],
    code: int,
    said: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", FAKE_PATH)
    monkeypatch.setenv("FAKE_ENGINE_PIDS", str(work / "pids"))
    done = subprocess.run(
        [sys.executable, "-m", "mate_plugin.cli", "demo", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (work / "pids").exists()

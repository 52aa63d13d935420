"""All that a machine with an NVIDIA GPU can show of the kernels, with a table of what came out.

python tools/test_gpu.py [--stages auto,portable,...] [--musa-library FILE] [--summary FILE]
                         [--logs FOLDER]

The Python that runs it needs a torch built for CUDA, pytest, hypothesis, and mate-plugin with
libmate_cuda.so. Stages:

auto       tests/gpu with the kernels that a user gets
portable   the same with the portable kernels alone
musa       the same with the MUSA branch of the portable kernels, as nvcc compiles it into
           --musa-library (python tests/musa_native.py FOLDER sm_90)
memcheck   compute-sanitizer on a call of each function, by Hopper's kernels and the portable ones
racecheck  its look at shared memory, likewise
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "gpu"
IMPLS = ("sm90a", "portable")
BRANCH = "MATE_TEST_MUSA_BRANCH"  # names the library in the place of libmate_cuda.so
COUNTS = ("passed", "failed", "errors", "error", "skipped")
LINES = 40  # that are shown of what failed


@dataclass
class Outcome:
    """What a command left: counts of tests or cases, and the last lines where it failed."""

    name: str
    ok: bool
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    last: str = ""


@dataclass(frozen=True)
class Job:
    name: str
    command: list[str]
    env: dict[str, str]
    read: Callable[[str], dict[str, int]]


def tests_of(stage: str, env: dict[str, str]) -> list[Job]:
    """tests/gpu, a process for each file."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    files = sorted(FOLDER.glob("test_*.py"))
    return [Job(f"{stage} {file.stem}", [*pytest, str(file)], env, counted_tests) for file in files]


def counted_tests(output: str) -> dict[str, int]:
    lines = [line for line in output.splitlines() if re.search(r" in [\d.]+s", line)]
    found = re.findall(rf"(\d+) ({'|'.join(COUNTS)})\b", lines[-1]) if lines else []
    return {what: int(count) for count, what in found}


def sanitized(tool: str) -> list[Job]:
    """A call of each function, small, under compute-sanitizer."""
    from mate_plugin.trial.cases import CASES

    found = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    wanted = {"device": "cuda", "cases": [case.name for case in CASES], "timed": False}
    command = [found, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    command += [sys.executable, "-m", "mate_plugin.trial.child", json.dumps(wanted), "1"]
    return [
        Job(f"{tool} {impl}", command, {"MATE_PLUGIN_IMPL": impl}, counted_cases) for impl in IMPLS
    ]


def counted_cases(output: str) -> dict[str, int]:
    """Of the lines that the trial's process writes; raises where a case went wrong."""
    results = [json.loads(line) for line in output.splitlines() if line.startswith('{"case"')]
    right = [one for one in results if "error" in one and one["error"] <= one["tolerance"]]
    refused = [one for one in results if "refused" in one]
    wrong = len(results) - len(right) - len(refused)
    counts = {"passed": len(right), "skipped": len(refused), "failed": wrong}
    return {what: count for what, count in counts.items() if count}


def run(job: Job, limit: float, logs: Path | None = None) -> Outcome:
    start = time.perf_counter()
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            job.command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path} | job.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit,
        )
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:
        output, code = f"{_text(late.stdout).rstrip()}\nno end within {limit:.0f} s", 1
    except OSError as error:
        output, code = str(error), 1
    if logs is not None:
        (logs / f"{job.name.replace(' ', '-')}.log").write_text(output)
    counts = job.read(output)
    # 5: pytest found no tests, all of a file were skipped while it was read.
    ok = code in (0, 5) and not any(counts.get(bad) for bad in ("failed", "error", "errors"))
    last = "" if ok else "\n".join(output.splitlines()[-LINES:])
    return Outcome(job.name, ok, counts, time.perf_counter() - start, last)


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def table(outcomes: list[Outcome]) -> str:
    """Markdown."""
    lines = ["| what | outcome | s |", "|---|---|---|"]
    for one in outcomes:
        told = ", ".join(f"{count} {what}" for what, count in one.counts.items()) or "no counts"
        mark = told if one.ok else f"**failed**: {told}"
        lines.append(f"| {one.name} | {mark} | {one.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", default="auto,portable,memcheck,racecheck")
    parser.add_argument("--musa-library", type=Path)
    parser.add_argument("--summary", type=Path, help="where the table goes too")
    parser.add_argument("--logs", type=Path, help="a folder for all that each process wrote")
    parser.add_argument("--jobs", type=int, default=6, help="processes at a time")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds that each may take")
    options = parser.parse_args()
    portable = {"MATE_PLUGIN_IMPL": "portable"}
    stages: dict[str, Callable[[], list[Job]]] = {
        "auto": lambda: tests_of("auto", {"MATE_PLUGIN_IMPL": ""}),
        "portable": lambda: tests_of("portable", portable),
        "musa": lambda: tests_of("musa", portable | {BRANCH: str(options.musa_library)}),
        "memcheck": lambda: sanitized("memcheck"),
        "racecheck": lambda: sanitized("racecheck"),
    }
    chosen = options.stages.split(",")
    if unknown := set(chosen) - set(stages):
        parser.error(f"--stages: expected some of {', '.join(stages)}, got {', '.join(unknown)}")
    if "musa" in chosen and not (options.musa_library and options.musa_library.is_file()):
        parser.error(f"--musa-library: expected a file, got {options.musa_library}")
    if options.logs is not None:
        options.logs.mkdir(parents=True, exist_ok=True)
    jobs = [job for stage in chosen for job in stages[stage]()]
    outcomes = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(lambda job: run(job, options.limit, options.logs), jobs):
            outcomes.append(outcome)
            print(f"{'ok    ' if outcome.ok else 'FAILED'} {outcome.name}", flush=True)
            if not outcome.ok:
                print(outcome.last, flush=True)
    print(table(outcomes))
    if options.summary:
        options.summary.write_text(table(outcomes))
    if not any(outcome.counts.get("passed") for outcome in outcomes):
        print("Nothing ran; mate-plugin doctor --device cuda says why", file=sys.stderr)
        return 1
    return 0 if all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

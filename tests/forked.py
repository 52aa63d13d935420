"""Runs snippets in forks of one process that has imported an engine, which takes seconds."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

VLLM = """
import vllm
import vllm.model_executor.kernels.linear
import vllm.model_executor.layers.quantization.fp8
"""


def _is_installed(package: str) -> bool:
    # A folder of that name on the path, as tests/vllm is to some processes, has no origin.
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


needs_vllm = pytest.mark.skipif(not _is_installed("vllm"), reason="vLLM is not installed")
SERVE = """
import json, os, sys, traceback
exec(sys.argv[1], {})
print("ready", flush=True)
for request in sys.stdin:
    case = json.loads(request)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(case["output"], os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        os.environ.update(case["env"])
        code = 0
        try:
            exec(case["code"], {})
        except SystemExit as stop:
            code = stop.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            traceback.print_exc()
            code = 70
        sys.stdout.flush()
        os._exit(code or 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """What a snippet left: exit status, and output of both streams."""

    returncode: int
    output: str

    def said(self) -> list[str]:
        """What the plugin said."""
        return [line for line in self.output.splitlines() if "mate-plugin:" in line]


class Forks:
    """A process that has run ``imports``; ``run`` executes a snippet in a fork of it."""

    def __init__(self, imports: str = VLLM, **env: str) -> None:
        prefixes = ("MATE_PLUGIN_", "VLLM_", "SGLANG_")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}
        self.environ = clean | env
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, imports],
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for line in self.process.stdout:
            if line.strip() == "ready":
                return
        raise AssertionError(f"could not be imported: {imports}")

    def run(self, code: str, **env: str) -> Done:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output"
            case = {"code": code, "env": env, "output": str(output)}
            self.process.stdin.write(json.dumps(case) + "\n")
            self.process.stdin.flush()
            status = int(self.process.stdout.readline())
            return Done(status, output.read_text())

    def run_case(self, module: str, case: str, folder: Path, **env: str) -> Done:
        """Call function ``case`` of a ``module`` that is in ``folder``; modules beside this file
        can be imported too."""
        paths = [str(folder), str(Path(__file__).resolve().parent)]
        code = f"import sys; sys.path[:0] = {paths!r}; import {module}; {module}.{case}()"
        return self.run(code, **env)

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)

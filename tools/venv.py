"""Steps of setting up .venv that are more than one pip call; the Makefile calls them.

python tools/venv.py torch [SPEC] [INDEX]    a CPU build of torch, never one for CUDA
python tools/venv.py vllm                    vLLM and its requirements, with torch untouched
python tools/venv.py core                    the compiled core, as an editable install
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTORCH_CPU = "https://download.pytorch.org/whl/cpu"
# Serving text models needs no audio and no video, and torch is there already.
NOT_FROM_VLLM = {"torch", "torchaudio", "torchvision", "torchcodec"}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def main() -> int:
    step, *arguments = sys.argv[1:] or [""]
    steps = {"torch": install_torch, "vllm": install_vllm, "core": build_core}
    if step not in steps:
        print(__doc__, file=sys.stderr)
        return 2
    return steps[step](*arguments)


def install_torch(spec: str = "torch==2.13.0", index: str = "") -> int:
    """Install ``spec`` as a CPU build from ``index``, pip's own indexes, or PyTorch's."""
    found = installed("torch")
    if found and found.split("+")[0] == spec.partition("==")[2].split("+")[0]:
        print(f"torch {found} is there already")
        return 0
    local = spec if "+" in spec or "==" not in spec else f"{spec}+cpu"
    if index:
        attempts = [(local, source(index)), (spec, source(index))]
    else:
        quick = ["--timeout", "20", "--retries", "1"]
        attempts = [
            (local, []),
            (local, ["--extra-index-url", PYTORCH_CPU, *quick]),
            # Where builds carry no local version (arm64), the plain one is for the CPU.
            (spec, []),
        ]
    for wanted, options in attempts:
        print(f"Looking for {wanted} {' '.join(options)}".rstrip(), flush=True)
        problem = refusal(wanted, options)
        if problem is None:
            return subprocess.call([*PIP, "install", wanted, *options])
        print(f"  {problem}", flush=True)
    print(f"\nNo CPU build of {spec} was found. Name an index (URL) or folder that has it,")
    print(f"for instance: make TORCH_INDEX={PYTORCH_CPU}")
    return 1


def source(index: str) -> list[str]:
    """pip's options for an index URL, or for a folder or page of wheels."""
    is_page = Path(index).is_dir() or index.endswith((".html", ".htm"))
    return ["--find-links" if is_page else "--extra-index-url", index]


def refusal(wanted: str, options: list[str]) -> str | None:
    """Why pip would not install a CPU build for ``wanted``, or None."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [*PIP, "install", "--dry-run", "--no-deps", "--ignore-installed", "-q"]
        done = subprocess.run(
            [*command, "--report", str(report), wanted, *options], capture_output=True, text=True
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return lines[-1] if lines else "pip found nothing"
        metadata = json.loads(report.read_text())["install"][0]["metadata"]
    gpu = [r for r in metadata.get("requires_dist", []) if r.startswith(("nvidia-", "cuda-"))]
    return f"that is a CUDA build (it wants {gpu[0].split(';')[0].strip()})" if gpu else None


def install_vllm() -> int:
    """Install requirements/vllm.txt without dependencies, then those but torch and its kin."""
    torch = installed("torch")
    if status := pip("--no-deps", "-r", str(ROOT / "requirements" / "vllm.txt")):
        return status
    name = re.search(r"^(vllm[\w-]*)", (ROOT / "requirements/vllm.txt").read_text(), re.M)[1]
    wanted = [
        line
        for line in importlib.metadata.requires(name) or []
        if "extra ==" not in line and re.match(r"[\w.-]+", line)[0] not in NOT_FROM_VLLM
    ]
    with tempfile.TemporaryDirectory() as folder:
        requirements, constraints = Path(folder) / "vllm.txt", Path(folder) / "torch.txt"
        requirements.write_text("\n".join(wanted) + "\n")
        constraints.write_text(f"torch=={torch}\n")
        status = pip("-r", str(requirements), "-c", str(constraints))
    if status == 0 and installed("torch") != torch:
        print(f"torch was {torch} and is now {installed('torch')}", file=sys.stderr)
        return 1
    return status


def build_core() -> int:
    """Editable install; shows the compiler's progress, and everything when it fails."""
    command = [*PIP, "install", "-v", "--no-build-isolation", "--no-deps", "-e", str(ROOT)]
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if re.match(r"\s*(\[\d+/\d+\]|\*\*\* )|.*\b(warning|error):", line):
                print("  " + line.strip(), flush=True)
    if process.returncode:
        sys.stderr.writelines(lines)
    return process.returncode


def pip(*arguments: str) -> int:
    """``pip install`` that shows what it fetches, but not what is there already."""
    # pip also complains of the requirements of vLLM that are left out on purpose.
    noise = re.compile(
        "Requirement already satisfied|Ignoring |ERROR: pip's dependency resolver|"
        rf"vllm\S* \S+ requires ({'|'.join(NOT_FROM_VLLM)})\b"
    )
    with subprocess.Popen(
        [*PIP, "install", "--progress-bar", "off", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:
            if not noise.match(line):
                print("  " + line.rstrip()[:160], flush=True)
    return process.returncode


def installed(name: str) -> str:
    """Version of a distribution in this environment, or an empty string."""
    # A fresh process, because this one remembers what it saw before pip ran.
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())

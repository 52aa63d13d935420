"""Steps of setting up an environment that are more than one pip call; the Makefile calls them.

python tools/venv.py torch [SPEC] [INDEX]             a CPU build of torch, never one for CUDA
python tools/venv.py vllm                             vLLM and its requirements, torch untouched
python tools/venv.py sglang [TORCHVISION] [INDEX]     SGLang and its requirements, the same
python tools/venv.py core                             the compiled core, as an editable install
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
TORCHVISION_OPS = ROOT / "tools" / "torchvision_ops.py"
PYTORCH_CPU = "https://download.pytorch.org/whl/cpu"
# Serving text models needs no audio and no video, and torch is there already.
NOT_FROM_VLLM = {"torch", "torchaudio", "torchvision", "torchcodec"}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def main() -> int:
    step, *arguments = sys.argv[1:] or [""]
    steps: dict[str, Callable[..., int]] = {
        "torch": install_torch,
        "vllm": install_vllm,
        "sglang": install_sglang,
        "core": build_core,
    }
    if step not in steps:
        print(__doc__, file=sys.stderr)
        return 2
    return steps[step](*arguments)


def install_torch(spec: str = "torch==2.13.0", index: str = "") -> int:
    """Install ``spec`` as a CPU build from ``index``, pip's own indexes, or PyTorch's."""
    if present(spec):
        return 0
    local = cpu_build(spec)
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
    status = install_first(attempts)
    if status is not None:
        return status
    print(f"\nNo CPU build of {spec} was found. Name an index (URL) or folder that has it,")
    print(f"for instance: make TORCH_INDEX={PYTORCH_CPU}")
    return 1


def install_first(attempts: list[tuple[str, list[str]]]) -> int | None:
    """Install the first of (specification, pip's options) that can be had and is for the CPU.

    Returns pip's status, or None where there is no such build.
    """
    for wanted, options in attempts:
        print(f"Looking for {wanted} {' '.join(options)}".rstrip(), flush=True)
        problem = refusal(wanted, options)
        if problem is None:
            return subprocess.call([*PIP, "install", wanted, *options])
        print(f"  {problem}", flush=True)
    return None


def present(spec: str) -> bool:
    """Whether a build of ``name==version`` is installed, whatever its local version; says so."""
    name, _, version = spec.partition("==")
    found = installed(name)
    if not found or found.split("+")[0] != version.split("+")[0]:
        return False
    print(f"{name} {found} is there already")
    return True


def cpu_build(spec: str) -> str:
    """``name==version`` with the local version of builds for the CPU."""
    return spec if "+" in spec or "==" not in spec else f"{spec}+cpu"


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
    file = REQUIREMENTS / "vllm.txt"
    if status := pip("--no-deps", "-r", str(file)):
        return status
    name = re.search(r"^(vllm[\w-]*)", file.read_text(), re.M)[1]
    wanted = [
        line
        for line in importlib.metadata.requires(name) or []
        if "extra ==" not in line and re.match(r"[\w.-]+", line)[0] not in NOT_FROM_VLLM
    ]
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "vllm.txt"
        requirements.write_text("\n".join(wanted) + "\n")
        return install_beside_torch(requirements)


def install_sglang(torchvision: str = "torchvision==0.28.0", index: str = "") -> int:
    """Install SGLang and triton without dependencies, those that serving needs, and torchvision.

    ``torchvision`` comes as a CPU build from ``index`` or pip's own indexes, or else as any build,
    with a .pth file that lets it be imported.
    """
    if status := pip("--no-deps", "-r", str(REQUIREMENTS / "sglang.txt")):
        return status
    if status := install_beside_torch(REQUIREMENTS / "sglang-packages.txt"):
        return status
    if not present(torchvision):
        options = ["--no-deps", *(source(index) if index else [])]
        status = install_first([(cpu_build(torchvision), options), (torchvision, options)])
        if status != 0:
            return 1 if status is None else status
    packages = Path(sysconfig.get_path("purelib"))
    shutil.copy(TORCHVISION_OPS, packages)
    (packages / f"{TORCHVISION_OPS.stem}.pth").write_text(f"import {TORCHVISION_OPS.stem}\n")
    return subprocess.call([sys.executable, "-c", "import torchvision"])


def install_beside_torch(requirements: Path) -> int:
    """Install what a file lists, or fail where that would replace torch."""
    torch = installed("torch")
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "torch.txt"
        constraints.write_text(f"torch=={torch}\n")
        status = pip("-r", str(requirements), "-c", str(constraints))
    if status == 0 and installed("torch") != torch:
        print(f"torch was {torch} and is now {installed('torch')}", file=sys.stderr)
        return 1
    return status


def build_core() -> int:
    """Editable install; shows the compiler's progress, and everything when it fails."""
    command = [*PIP, "install", "-v", "--no-build-isolation", "--no-deps", "-e", str(ROOT)]
    # Compiler options name the environment: with one build folder for all, each would build anew.
    command += ["-C", f"build-dir={build_folder()}"]
    if Path(sys.prefix).name != ".venv":
        # torch is a CPU build in all of them: one library for GPUs is enough to look at.
        command += ["-C", "cmake.define.MATE_PLUGIN_CUDA=OFF"]
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if re.match(r"\s*(\[\d+/\d+\]|\*\*\* |-- libmate_\w+\.so)|.*\b(warning|error):", line):
                print("  " + line.strip(), flush=True)
    if process.returncode:
        sys.stderr.writelines(lines)
    return process.returncode


def build_folder() -> str:
    """scikit-build-core's build folder for this environment, such as build/{state}-sglang."""
    return "build/{state}" + Path(sys.prefix).name.removeprefix(".venv")


def pip(*arguments: str) -> int:
    """``pip install`` that shows what it fetches, but not what is there already."""
    # pip also complains of the requirements of engines that are left out on purpose.
    noise = re.compile(
        "Requirement already satisfied|Ignoring |ERROR: pip's dependency resolver|"
        rf"vllm\S* \S+ requires ({'|'.join(NOT_FROM_VLLM)})\b|"
        "sglang [^ ]+ requires (torch==|.* which is not installed)"
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

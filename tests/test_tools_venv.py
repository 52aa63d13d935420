"""The set-up of environments: no CUDA build of torch, nor a torchvision that cannot be imported.

Offline: wheels of an invented package, and a torchvision that only registers fakes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("venv_tool", TOOLS / "venv.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_wheel(folder: Path, version: str, *requires: str) -> None:
    name = f"inventedtorch-{version}"
    metadata = ["Metadata-Version: 2.1", "Name: inventedtorch", f"Version: {version}"]
    metadata += [f"Requires-Dist: {line}" for line in requires]
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.dist-info/METADATA", "\n".join(metadata) + "\n")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{name}.dist-info/WHEEL", tags)
        wheel.writestr(f"{name}.dist-info/RECORD", "")


def test_cuda_builds_are_refused(tool: ModuleType, tmp_path: Path) -> None:
    options = ["--no-index", "--find-links", str(tmp_path)]
    write_wheel(tmp_path, "1.0", "sympy", "nvidia-cublas-cu13==1; platform_system == 'Linux'")
    write_wheel(tmp_path, "1.0+cpu", "sympy")
    assert tool.refusal("inventedtorch==1.0+cpu", options) is None
    (tmp_path / "inventedtorch-1.0+cpu-py3-none-any.whl").unlink()
    assert "CUDA build (it wants nvidia-cublas-cu13==1)" in tool.refusal(
        "inventedtorch==1.0", options
    )
    assert "No matching distribution" in tool.refusal("inventedtorch==1.0+cpu", options)


def test_index_may_be_a_url_or_a_folder(tool: ModuleType, tmp_path: Path) -> None:
    assert tool.source(str(tmp_path)) == ["--find-links", str(tmp_path)]
    assert tool.source("https://example.org/whl/cpu")[0] == "--extra-index-url"
    assert tool.source("https://example.org/torch.html")[0] == "--find-links"


def test_unknown_step_shows_the_usage(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["venv.py", "cake"])
    assert tool.main() == 2
    assert "tools/venv.py torch" in capsys.readouterr().err


def test_first_build_for_the_cpu_is_installed(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(tool.subprocess, "call", lambda command: commands.append(command) or 0)
    options = ["--no-index", "--find-links", str(tmp_path)]
    write_wheel(tmp_path, "2.0", "nvidia-cublas-cu13==1")
    attempts = [("inventedtorch==2.0", options), (tool.cpu_build("inventedtorch==1.0"), options)]
    assert tool.install_first(attempts) is None
    assert commands == []
    write_wheel(tmp_path, "1.0+cpu")
    assert tool.install_first(attempts) == 0
    assert [command[-4] for command in commands] == ["inventedtorch==1.0+cpu"]


def test_what_is_there_is_not_installed_again(tool: ModuleType) -> None:
    version = tool.installed("pytest")
    assert tool.present(f"pytest=={version}")
    assert tool.present(f"pytest=={version}+cpu")
    assert not tool.present("pytest==0.1")
    assert not tool.present("inventedtorch==1.0")


@pytest.mark.parametrize(
    ("environment", "folder"),
    [(".venv", "build/{state}"), (".venv-sglang", "build/{state}-sglang")],
)
def test_each_environment_has_its_own_build_folder(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, environment: str, folder: str
) -> None:
    monkeypatch.setattr(tool.sys, "prefix", f"/somewhere/{environment}")
    assert tool.build_folder() == folder


def import_torchvision(folder: Path, first: str) -> subprocess.CompletedProcess[str]:
    code = f"{first}; import sys; assert 'torch' not in sys.modules; import torchvision"
    return subprocess.run(
        [sys.executable, "-c", code + "; print(torchvision.NMS)"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (folder, TOOLS)))},
    )


def write_torchvision(folder: Path, compiled: str = "") -> None:
    """A package that registers fakes as torchvision does; ``compiled`` stands for its library."""
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        f"import torch\n{compiled}\nfrom torchvision import _meta_registrations\n"
        "NMS = torch.ops.torchvision.nms.default._schema\n"
    )
    (package / "_meta_registrations.py").write_text(
        "import torch\n"
        "for name in ('nms', 'qnms'):\n"
        "    torch.library.register_fake(f'torchvision::{name}')(lambda *_: None)\n"
    )


def test_torchvision_without_its_library_can_be_imported(tmp_path: Path) -> None:
    write_torchvision(tmp_path)
    # An environment for SGLang has it from the start.
    without = "import sys; import torchvision_ops; del sys.meta_path[0]"
    failed = import_torchvision(tmp_path, without)
    assert "operator torchvision::nms does not exist" in failed.stderr
    done = import_torchvision(tmp_path, "import torchvision_ops")
    assert done.returncode == 0, done.stderr
    assert "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" in done.stdout


def test_torchvision_with_its_library_keeps_its_operators(tmp_path: Path) -> None:
    schemas = "".join(f"L.define('{name}(Tensor own) -> Tensor');" for name in ("nms", "qnms"))
    write_torchvision(tmp_path, f"L = torch.library.Library('torchvision', 'DEF'); {schemas}")
    done = import_torchvision(tmp_path, "import torchvision_ops")
    assert done.returncode == 0, done.stderr
    assert "nms(Tensor own) -> Tensor" in done.stdout

"""The set-up of .venv never takes a CUDA build of torch. Offline: wheels of an invented package."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "tools" / "venv.py"
    spec = importlib.util.spec_from_file_location("venv_tool", path)
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

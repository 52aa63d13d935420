"""Where compilers are looked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mate_plugin import findings


def write(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("kind", ["cuda", "musa"])
def test_a_toolkit_that_a_variable_names_comes_before_path(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit = findings.TOOLKITS[kind]
    for name in ("CUDACXX", *toolkit.variables):
        monkeypatch.delenv(name, raising=False)
    on_path = write(tmp_path / "usual", toolkit.compiler)
    monkeypatch.setenv("PATH", str(on_path.parent), prepend=os.pathsep)
    assert findings.compiler(kind) == str(on_path)
    for name in reversed(toolkit.variables):
        own = write(tmp_path / name / "bin", toolkit.compiler)
        monkeypatch.setenv(name, str(tmp_path / name))
        assert findings.compiler(kind) == str(own)


def test_cudacxx_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(write(tmp_path / "home" / "bin", "nvcc").parent.parent))
    own = write(tmp_path, "nvcc-of-mine")
    monkeypatch.setenv("CUDACXX", str(own))
    assert findings.compiler("cuda") == str(own)
    monkeypatch.setenv("CUDACXX", str(tmp_path / "none"))
    assert findings.compiler("cuda") is None

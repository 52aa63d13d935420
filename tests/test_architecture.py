"""The rules of the floor plan: who may import whom, and what the compiled core may depend on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mate_plugin.kernels import library

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mate_plugin"
ENGINES = {"vllm", "sglang", "sgl_kernel"}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[tuple[str, bool]]:
    """Modules imported by a file, and whether each import runs when the file is imported."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.module or "", at_import))
            found.extend((f"{node.module}.{alias.name}", at_import) for alias in node.names)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        inner = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(path.read_text()), True)
    return found


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=names)
def test_only_seam_files_import_an_engine_and_lazily(path: Path) -> None:
    seam = re.search("vllm|sglang", path.name) is not None
    for module, at_import in imports(path):
        if module.split(".")[0] in ENGINES:
            assert seam, f"{names(path)} imports {module}"
            assert not at_import, f"{names(path)} imports {module} when it is imported"


@pytest.mark.parametrize("path", sorted((PACKAGE / "kernels").rglob("*.py")), ids=names)
def test_kernels_know_nothing_above_them(path: Path) -> None:
    for module, _ in imports(path):
        if module.startswith("mate_plugin."):
            assert module.startswith("mate_plugin.kernels"), f"{names(path)} imports {module}"


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if "kernels" not in p.relative_to(PACKAGE).parts], ids=names
)
def test_nothing_above_the_kernels_calls_a_compiled_symbol(path: Path) -> None:
    modules = {module for module, _ in imports(path)}
    assert not any(m.split(".")[0] == "tvm_ffi" for m in modules), "talks to the core itself"
    calls = re.findall(r"(?<!\w)library\.(?:module|define)\(", path.read_text())
    assert not calls, f"{names(path)} reaches around mate_plugin.kernels"


def test_the_core_includes_neither_torch_nor_python() -> None:
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.is_file()]
    assert sources
    for path in sources:
        for header in re.findall(r'#include\s+[<"]([^>"]+)[>"]', path.read_text()):
            assert not re.match(r"(torch|ATen|c10|pybind11|Python\.h)", header), (path, header)


def test_the_library_needs_no_runtime_of_its_own() -> None:
    dump = subprocess.run(
        ["readelf", "-d", str(library.find("libmate_cpu.so"))],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", dump)
    assert "libtvm_ffi.so" in needed
    for name in needed:
        assert not re.match(r"lib(torch|c10|python|gomp|iomp|omp)", name), needed


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, mate_plugin; print([m for m in ('torch', 'vllm') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_vendors_name_is_free() -> None:
    assert not (ROOT / "mate").exists()

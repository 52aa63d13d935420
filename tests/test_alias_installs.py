"""``import mate`` in fresh environments: wheel and editable, with and without a vendor's."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VENDOR = "__vendor__ = True\nfrom . import gemm, deep_gemm\n"


class Environment:
    """A virtual environment without pip, with torch and the rest on a path behind its own."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin" / "python"
        self.site = next((folder / "lib").glob("python*/site-packages"))
        here = sysconfig.get_path("purelib")
        # A plain path: the .pth files in that folder, ours among them, are not read again.
        (self.site / "a_packages.pth").write_text(f"{here}\n")

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)

    def run(self, code: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            [self.python, "-c", code], capture_output=True, text=True, cwd=cwd or self.site.parent
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def whose(self) -> str:
        """ "ours" or "vendor", and the modules must belong to the same."""
        code = (
            "import mate, mate.gemm; from mate import deep_gemm\n"
            "ours = getattr(mate, '__mate_plugin__', False)\n"
            "assert ours != hasattr(mate, '__vendor__'), vars(mate)\n"
            "for module in (mate.gemm, deep_gemm):\n"
            "    assert hasattr(module, 'VENDOR') != ours, module\n"
            "print('ours' if ours else 'vendor')"
        )
        return self.run(code)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    command += ["-C", "cmake.define.MATE_PLUGIN_CUDA=OFF"]
    command += ["-C", f"build-dir={folder / 'build'}", "-w", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def install_wheel(environment: Environment, wheel: Path) -> None:
    environment.pip("install", "--no-deps", "--no-index", "-q", str(wheel))


def install_editable(environment: Environment, _: Path) -> None:
    """Copy the files of this environment's editable install, which are one, without a build."""
    here = Path(sysconfig.get_path("purelib"))
    for file in importlib.metadata.files("mate-plugin") or ():
        source = here / file
        if ".." not in file.parts and source.is_file():
            target = environment.site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def is_editable() -> bool:
    text = importlib.metadata.distribution("mate-plugin").read_text("direct_url.json")
    return bool(text and json.loads(text).get("dir_info", {}).get("editable"))


def write_vendor(folder: Path) -> Path:
    (folder / "mate").mkdir(parents=True)
    (folder / "mate" / "__init__.py").write_text(VENDOR)
    for name in ("gemm", "deep_gemm"):
        (folder / "mate" / f"{name}.py").write_text("VENDOR = True\n")
    return folder


def no_vendor(environment: Environment) -> None:
    pass


def regular_vendor(environment: Environment) -> None:
    write_vendor(environment.site)


def path_vendor(environment: Environment) -> None:
    """An editable install by a path, even one that sorts behind ours."""
    source = write_vendor(environment.site.parent / "vendor")
    (environment.site / "zzz_vendor.pth").write_text(f"{source}\n")


def finder_vendor(environment: Environment) -> None:
    """An editable install by a finder behind the one that searches sys.path."""
    source = write_vendor(environment.site.parent / "vendor")
    (environment.site / "__editable___vendor_finder.py").write_text(
        "import sys\n"
        "from importlib.util import spec_from_file_location\n"
        "class Finder:\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        if name == 'mate':\n"
        f"            return spec_from_file_location(name, {str(source / 'mate/__init__.py')!r})\n"
        "def install():\n"
        "    sys.meta_path.append(Finder)\n"
    )
    (environment.site / "__editable__.vendor.pth").write_text(
        "import __editable___vendor_finder as f; f.install()\n"
    )


Install = Callable[[Environment, Path], None]
INSTALLS = [install_wheel, install_editable]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


@pytest.mark.parametrize("install", INSTALLS)
@pytest.mark.parametrize(
    ("vendor", "whose"),
    [
        (no_vendor, "ours"),
        (regular_vendor, "vendor"),
        (path_vendor, "vendor"),
        (finder_vendor, "vendor"),
    ],
)
def test_ours_yields_to_any_other(
    environment: Environment,
    wheel: Path,
    install: Install,
    vendor: Callable[[Environment], None],
    whose: str,
) -> None:
    if install is install_editable and not is_editable():
        pytest.skip("mate-plugin is not installed editable here")
    install(environment, wheel)
    vendor(environment)
    assert environment.whose() == whose


@pytest.mark.parametrize("install", INSTALLS)
def test_alias_is_the_same_modules(
    environment: Environment, wheel: Path, install: Install, tmp_path: Path
) -> None:
    if install is install_editable and not is_editable():
        pytest.skip("mate-plugin is not installed editable here")
    install(environment, wheel)
    # A stray folder of that name in the working directory is no package of anyone's.
    (tmp_path / "mate").mkdir()
    code = (
        "import mate.gemm, mate.deep_gemm, mate_plugin.kernels.gemm as g\n"
        "import mate_plugin.kernels.deep_gemm as d\n"
        "assert mate.gemm is g and mate.deep_gemm is d\n"
        "from mate.gemm import bmm_fp8; assert bmm_fp8 is g.bmm_fp8\n"
        "from mate_plugin.config import shipped_configs; print(len(shipped_configs()))"
    )
    assert environment.run(code, cwd=tmp_path) == "4"


def test_lazy_import_loads_no_torch(environment: Environment, wheel: Path) -> None:
    install_wheel(environment, wheel)
    assert environment.run("import mate, sys; print('torch' in sys.modules)") == "False"


def test_uninstall_leaves_the_vendor_intact(environment: Environment, wheel: Path) -> None:
    regular_vendor(environment)
    before = sorted((environment.site / "mate").rglob("*"))
    install_wheel(environment, wheel)
    assert environment.whose() == "vendor"
    environment.pip("uninstall", "-y", "-q", "mate-plugin")
    assert set(before) <= set((environment.site / "mate").rglob("*"))
    assert environment.whose() == "vendor"
    left = [path.name for path in environment.site.iterdir() if "mate_plugin" in path.name]
    assert left == []


def test_wheel_has_no_top_level_mate(environment: Environment, wheel: Path) -> None:
    install_wheel(environment, wheel)
    assert not (environment.site / "mate").exists()
    assert (environment.site / "zz_mate_plugin.pth").read_text() == "mate_plugin/alias\n"

"""The vendor's mate as provider of kernels, on a simulated Moore Threads device.

Nothing here ran on a card: the package is a stand-in that checks what release 0.2.2 checks.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import musa_device
import musa_vendor
import pytest
from forked import Forks
from musa_vendor import RELEASES, UNRELATED, VENDOR, install

# Cases that need an environment of their own are called by name.
APART = {"put_in_place", "run_small", "forced_portable", "forced_vendor", "compiled"}
CASES = [
    f"{module}.{node.name}"
    for module in musa_vendor.CASES
    for node in ast.parse((musa_vendor.HERE / f"{module}.py").read_text()).body
    if isinstance(node, ast.FunctionDef) and not node.args.args and node.name not in APART
]


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> Path:
    return musa_device.build(request.config.cache.mkdir("fake_musa"))


@pytest.fixture(scope="module", params=RELEASES)
def vendor(
    request: pytest.FixtureRequest, device: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Forks]:
    """A process where this release of the vendor's package is installed."""
    folder = install(tmp_path_factory.mktemp("site"), request.param)
    forks = musa_vendor.start(device, folder, FAKE_MATE_VERSION=request.param)
    yield forks
    forks.stop()


def run(forks: Forks, call: str, **env: str) -> None:
    module = call.split(".")[0]
    done = forks.run(f"import {module}; {call}", **env)
    assert done.returncode == 0, done.output


@pytest.mark.parametrize("case", CASES)
def test_case(vendor: Forks, case: str) -> None:
    run(vendor, f"{case}()")


def test_it_can_be_left_out(vendor: Forks) -> None:
    run(vendor, "musa_vendor_package.forced_portable()", MATE_PLUGIN_IMPL="portable")
    for word in ("off", "OFF", "0"):
        call = "musa_vendor_package.lacking('MATE_PLUGIN_VENDOR=off leaves the vendor')"
        run(vendor, call, MATE_PLUGIN_VENDOR=word)
    run(
        vendor,
        "musa_vendor_package.lacking('MATE_PLUGIN_VENDOR: expected auto or off')",
        MATE_PLUGIN_VENDOR="of",
    )
    run(vendor, "musa_vendor_grouped.ragged_m_refused()", MATE_PLUGIN_VENDOR="auto")


def test_it_can_be_insisted_on(vendor: Forks) -> None:
    run(vendor, "musa_vendor_package.forced_vendor()", MATE_PLUGIN_IMPL="vendor")
    call = "musa_vendor_package.lacking('MATE_PLUGIN_VENDOR=off leaves the vendor', forced=True)"
    run(vendor, call, MATE_PLUGIN_IMPL="vendor", MATE_PLUGIN_VENDOR="off")


def test_a_compiled_graph(device: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = install(tmp_path, "0.2.2")
    forks = musa_vendor.start(device, folder, TORCH_COMPILE_DISABLE="0")
    request.addfinalizer(forks.stop)
    run(forks, "musa_vendor_graphs.compiled()")


def test_beside_our_own_kernels(vendor: Forks, request: pytest.FixtureRequest) -> None:
    musa_native = pytest.importorskip("musa_native")
    path = musa_native.build_on_host(Path(request.config.cache.mkdir("musa")))
    run(vendor, f"musa_vendor_beside.real_kernels({str(path)!r})")


# Metadata, modules, and what is said of them.
INIT = "__init__.py"
PACKAGES: dict[str, tuple[tuple[str, ...] | None, dict[str, str], str]] = {
    "none": (None, {}, "the vendor's mate is not installed"),
    "no metadata": (None, {INIT: ""}, "the vendor's mate is not installed"),
    "unrelated": (UNRELATED, {INIT: ""}, "the installed mate 3.0 is not Moore Threads'"),
    "of a like name": (
        ("Author: Somebody", "Requires-Dist: apache-tvm-ffi-tools"),
        {INIT: ""},
        "the installed mate 3.0 is not Moore Threads'",
    ),
    "broken": (
        VENDOR,
        {INIT: "raise OSError('libmusa.so.4: cannot open shared object file')"},
        "the vendor's mate 3.0 cannot be imported (OSError: libmusa.so.4: cannot open",
    ),
    "without its modules": (
        VENDOR,
        {INIT: ""},
        "cannot be imported (ModuleNotFoundError: No module named 'mate.gemm')",
    ),
    "ours": (VENDOR, {INIT: "__mate_plugin__ = True"}, "import mate finds mate-plugin's alias"),
    "emptied": (
        VENDOR,
        {INIT: "", "gemm.py": "", "deep_gemm.py": ""},
        "the installed mate 3.0 has none of the published functions",
    ),
}


@pytest.fixture(scope="module")
def bare(device: Path) -> Iterator[Forks]:
    """A process where nothing says that the vendor's package is installed."""
    forks = musa_vendor.start(device)
    yield forks
    forks.stop()


@pytest.mark.parametrize("kind", PACKAGES)
def test_what_is_no_package_of_the_vendors(bare: Forks, tmp_path: Path, kind: str) -> None:
    about, files, reason = PACKAGES[kind]
    for name, code in files.items():
        path = tmp_path / "mate" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    if about is not None:
        install(tmp_path, "3.0", about)
    call = f"musa_vendor_package.lacking({reason!r}, folder={str(tmp_path)!r})"
    run(bare, call)
    run(bare, call.replace("folder", "forced=True, folder"), MATE_PLUGIN_IMPL="vendor")
    fine = about is None or reason.endswith("not Moore Threads'")
    state = "ok" if fine else "wrong"
    run(bare, f"musa_vendor_package.the_doctor_says({state!r}, {reason!r}, {str(tmp_path)!r})")


def test_the_doctor_of_a_package_that_is_left_out(vendor: Forks) -> None:
    call = "musa_vendor_package.the_doctor_says('note', 'MATE_PLUGIN_VENDOR=off leaves the')"
    run(vendor, call, MATE_PLUGIN_VENDOR="off")
    call = "musa_vendor_package.the_doctor_says('wrong', 'MATE_PLUGIN_VENDOR: expected auto or')"
    run(vendor, call, MATE_PLUGIN_VENDOR="1")

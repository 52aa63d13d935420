"""Processes in which the simulated device, and a stand-in for the vendor's mate, are installed."""

from __future__ import annotations

from pathlib import Path

import musa_device
from forked import Forks

HERE = Path(__file__).resolve().parent
CASES = tuple(
    f"musa_vendor_{name}" for name in ("grouped", "dense", "indexer", "package", "beside", "graphs")
)
RELEASES = ("0.2.2", "0.2.7")
# As the vendor's pyproject.toml makes them; the library of that name on the index has neither.
VENDOR = ("Author: MooreThreads GPU Computing Team", "Requires-Dist: apache-tvm-ffi>=0.1.8")
UNRELATED = ("Author: Somebody", "Requires-Dist: pandas")


def install(folder: Path, release: str, about: tuple[str, ...] = VENDOR) -> Path:
    """Metadata of a distribution ``mate`` in ``folder``."""
    metadata = folder / f"mate-{release}.dist-info"
    metadata.mkdir(parents=True)
    lines = ("Metadata-Version: 2.4", "Name: mate", f"Version: {release}", *about)
    (metadata / "METADATA").write_text("\n".join(lines) + "\n")
    return folder


def start(device: Path, *folders: Path, **env: str) -> Forks:
    """A process that finds ``folders`` and then the stand-ins before anything else."""
    paths = [str(folder) for folder in (*folders, musa_device.PACKAGES, HERE)]
    imports = f"import sys; sys.path[:0] = {paths!r}; import torch_musa, {', '.join(CASES)}"
    return Forks(imports, **musa_device.environment(device) | env)

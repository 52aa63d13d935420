"""Values of MATE_PLUGIN_IMPL in turns in one process: auto, portable and tilelang."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mate_plugin.kernels import library


class Impls:
    """Stands for the library wherever it is called; made before its first call.

    A library reads MATE_PLUGIN_IMPL once, and a copy of its file is another library. The variable
    is what the next call may read, so that each of them finds its own at its first. Calls go to
    TileLang only if the first one of their op asks for it.
    """

    def __init__(self, folder: Path) -> None:
        """``folder`` takes the copy, and stays as long as the process uses the GPU."""
        assert "cuda" not in library._loaded, "a library was loaded before"
        name = library.LIBRARIES["cuda"]
        self._impl = "auto"
        self._libraries = {"auto": library.module("cuda")}
        copy = folder / f"portable-{name}"
        usual = library.find
        found = usual(name)
        assert found is not None  # or it would not have been loaded
        shutil.copyfile(found, copy)
        library.find = lambda wanted: copy if wanted == name else usual(wanted)
        try:
            self._libraries["portable"] = library._load("cuda")
        finally:
            library.find = usual
        library._loaded["cuda"] = self
        self.use("auto")

    def use(self, impl: str) -> None:
        """Calls from here on are served by "auto", "portable" or "tilelang"."""
        os.environ["MATE_PLUGIN_IMPL"] = self._impl = impl

    def run(self, impl: str, call: Callable[[], object]) -> Callable[[], object]:
        """``call`` with one of the three."""

        def run() -> object:
            self.use(impl)
            return call()

        return run

    def served(self, run: Callable[[], object]) -> str:
        """Which kernels a call of :meth:`run` takes."""
        run()  # chooses the library whose counters are read
        library.reset_counters()
        run()
        return "+".join(sorted({count["impl"] for count in library.counters() if count["calls"]}))

    def __getitem__(self, name: str) -> Callable[..., Any]:
        functions = {impl: one[name] for impl, one in self._libraries.items()}
        return lambda *arguments: functions[self._library()](*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._libraries[self._library()], name)

    def _library(self) -> str:
        """What of ours serves what TileLang does not."""
        return self._impl if self._impl in self._libraries else "auto"

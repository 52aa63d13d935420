"""Lets mate-plugin find the kernels that were built for the host, as if they were installed."""

from __future__ import annotations

import os
from pathlib import Path

from mate_plugin.kernels import library

BUILT = Path(os.environ["FAKE_MUSA_LIBRARY"])
elsewhere = library.find


def _find(name: str) -> Path | None:
    if name == BUILT.name:
        return BUILT
    return elsewhere(name)


library.find = _find

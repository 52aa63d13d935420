"""How many random cases a test draws."""

from __future__ import annotations

import os


def examples(usual: int) -> int:
    """``usual``, or ``MATE_TEST_EXAMPLES`` where that is less."""
    return min(usual, int(os.environ.get("MATE_TEST_EXAMPLES", usual)))

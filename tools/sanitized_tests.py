"""pytest plugin of ``make sanitize``: a core built for a sanitizer, whose reports fail their test.

Reads MATE_SANITIZED, the folder of that build: the core in lib/, and the reports of this process in
reports.*.<pid>. Run as a program it loads the core and prints its instruction sets.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import pytest

import mate_plugin

BUILD = Path(os.environ["MATE_SANITIZED"])
# The core is looked for along the package's path; this one comes before the installed one.
mate_plugin.__path__.insert(0, str(BUILD))

# UBSan's option log_path would be taken by AddressSanitizer, whose functions come first.
with contextlib.suppress(OSError):
    undefined = ctypes.CDLL("libubsan.so.1", mode=os.RTLD_NOLOAD)
    undefined.__sanitizer_set_report_path(str(BUILD / "reports.undefined").encode())


def _reports() -> dict[Path, str]:
    paths = BUILD.glob(f"reports.*.{os.getpid()}")
    return {path: path.read_text(errors="replace") for path in paths}


def _skip(*_: Any, **__: Any) -> NoReturn:
    pytest.skip("starts another process, which would load the installed core")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    before = _reports()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subprocess, "Popen", _skip)
            return (yield)
    finally:
        # Also in place of a failed assertion, of which it is the likely cause.
        new = [text[len(before.get(path, "")) :] for path, text in _reports().items()]
        if report := "".join(new):
            pytest.fail(report, pytrace=False)


if __name__ == "__main__":
    from mate_plugin.kernels import library

    print(*library.available_isas())

"""A device on trial: every case by each implementation, in processes that may crash or hang."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mate_plugin.trial.cases import CASES

# Implementations that are tried on a kind of device, each against the CPU.
IMPLS = {
    "cuda": ("sm90a", "tilelang", "portable"),
    "musa": ("vendor", "tilelang", "portable"),
}
# The first case pays for imports and for compilers of the vendor's package.
PATIENCE = 600.0
WORDS = 2000  # characters of a process's last words that are kept


class TrialError(RuntimeError):
    """No case could be started; the message is what the process said."""


@dataclass(frozen=True)
class Result:
    """One case by one implementation. ``impl`` is what the counters named, which is not ``wanted``
    where that does not serve the case; ``problem`` is empty where the numbers are right."""

    case: str
    wanted: str
    impl: str = ""
    error: float | None = None
    tolerance: float | None = None
    seconds: float | None = None
    problem: str = ""
    refused: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def trial(
    device: str, impl: str, names: Sequence[str] = (), timed: bool = False
) -> Iterator[Result]:
    """Try the cases of these names (all of them where there are none) one after the other.

    Args:
        device: "cuda" or "musa".
        impl: a value of ``MATE_PLUGIN_IMPL``.
        timed: measure at the size of a served model, in place of comparing with the CPU.

    Raises:
        TrialError: the device cannot be used at all.
    """
    left = list(names or (case.name for case in CASES))
    if impl not in IMPLS[device]:
        raise ValueError(f"impl: expected one of {', '.join(IMPLS[device])}, got {impl!r}")
    while left:
        for result in _process(device, impl, left, timed):
            left = left[left.index(result.case) + 1 :]
            yield result


def _process(device: str, impl: str, names: list[str], timed: bool) -> Iterator[Result]:
    """Results until all names are through, or one has ended the process."""
    reading, writing = os.pipe()
    wanted = json.dumps({"device": device, "cases": names, "timed": timed})
    with tempfile.TemporaryFile("w+", errors="replace") as words:
        child = subprocess.Popen(
            [sys.executable, "-m", "mate_plugin.trial.child", wanted, str(writing)],
            env=os.environ | {"MATE_PLUGIN_IMPL": impl},
            pass_fds=(writing,),
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
        )
        os.close(writing)
        started, ended = "", False
        try:
            for line in _lines(reading):
                if "start" in line:
                    started, ended = line["start"], False
                else:
                    ended = True
                    yield _result(line, impl)
            code = child.wait()
        except TimeoutError:
            problem = f"no answer within {PATIENCE:.0f} s"
            if not started:
                raise TrialError(problem) from None
            yield Result(started, impl, problem=problem)
            return
        finally:
            child.kill()
            child.wait()
            os.close(reading)
        if ended:
            return
        words.seek(0)
        problem = f"the process ended: {_status(code)}\n{words.read()[-WORDS:].strip()}"
        if not started:
            raise TrialError(problem)
        yield Result(started, impl, problem=problem)


def _lines(reading: int) -> Iterator[dict[str, Any]]:
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while True:
            if not selector.select(PATIENCE):
                raise TimeoutError
            some = os.read(reading, 1 << 16)
            if not some:
                return
            *whole, buffer = (buffer + some).split(b"\n")
            yield from (json.loads(line) for line in whole)


def _result(line: dict[str, Any], wanted: str) -> Result:
    error, tolerance = line.get("error"), line.get("tolerance")
    problem = line.get("failed", "")
    if error is not None and not error <= tolerance:
        problem = f"error {error:.1e}, expected at most {tolerance:.0e}"
    return Result(
        line["case"],
        wanted,
        line.get("impl", ""),
        error,
        tolerance,
        line.get("seconds"),
        problem,
        line.get("refused", ""),
    )


def _status(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

"""An engine's OpenAI server on a free loopback port, stopped with every process it started."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from mate_plugin.demo.engines import VLLM, Engine, Launch

POLL_S = 0.2
# Engines that are asked to end while they load models may not listen; then they are killed.
STOP_S = 6.0


class ServerError(RuntimeError):
    """The server ended or did not answer in time."""


class Server:
    """``with Server(...) as server: server.wait(...)``; leaving the block ends every process."""

    def __init__(
        self,
        model: Path,
        name: str,
        log: Path,
        *,
        engine: Engine = VLLM,
        port: int = 0,
        eager: bool = True,
        max_length: int = 2048,
        environ: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.port = port or free_port()
        self.log = log
        self.url = f"http://127.0.0.1:{self.port}"
        self._engine = engine
        launch = Launch(model, name, self.port, max_length, eager)
        self._command = [sys.executable, *engine.command(launch), *options]
        self._environ = {**os.environ, **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        with self.log.open("wb") as log:
            # A session of its own, so that the engine's processes can be signalled together and
            # Ctrl-C reaches them only through stop().
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environ,
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def wait(self, timeout_s: float, on_stage: Callable[[str], None]) -> None:
        """Return when the server answers; ``on_stage`` hears each new stage of its start.

        Raises ServerError when it ends first or takes longer than ``timeout_s`` seconds.
        """
        process = self._process
        if process is None:
            raise ServerError("the server was not started")
        end = time.monotonic() + timeout_s
        seen = ""
        while not self._answers():
            if process.poll() is not None:
                raise ServerError(f"the server ended with status {process.returncode}")
            if time.monotonic() > end:
                raise ServerError(
                    f"the server was not ready after {timeout_s:.0f} s (stage: {seen or 'none'})"
                )
            stage = stage_of(self.log, self._engine)
            if stage and stage != seen:
                seen = stage
                on_stage(stage)
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End the server and every process it started; harmless when it has ended already."""
        process, self._process = self._process, None
        if process is None:
            return
        # A second Ctrl-C while we clean up must not leave processes behind.
        before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                before[number] = signal.signal(number, signal.SIG_IGN)
            except ValueError:
                break  # signals belong to the main thread
        try:
            for number, patience in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 2 * STOP_S)):
                if _signal_group(process.pid, number) and _group_ends(process, patience):
                    break
            process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self._engine.ready, timeout=2) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stage_of(log: Path, engine: Engine) -> str:
    """The furthest stage that the log of ``engine`` tells of, or an empty string."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    stages = reversed(engine.stages)
    return next((stage for pattern, stage in stages if re.search(pattern, text)), "")


def last_lines(log: Path, count: int = 25) -> list[str]:
    """The end of a log, without empty lines."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip()][-count:]


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _group_ends(process: subprocess.Popen[bytes], patience_s: float) -> bool:
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        process.poll()
        # Signal 0 asks whether any process of the group is left.
        if not _signal_group(process.pid, 0):
            return True
        time.sleep(0.1)
    return False

"""An engine's server started by its own command, and what tests of served models ask it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
START_S = 600
NEW_TOKENS = 32
# Eight prompts of 5 to 400 tokens, below, at and above the 128 of a block.
PROMPT_LENGTHS = (5, 17, 64, 127, 129, 200, 301, 400)
FIRST_TOKEN, LAST_TOKEN = 3, 250
MODEL = "tiny"


@dataclass(frozen=True)
class Answer:
    """Greedy tokens of one prompt, and per token the logprobs of the best candidates, all of them
    in the form ``token_id:17``."""

    tokens: list[str]
    top: list[dict[str, float]]


def prompts(lengths: Sequence[int] = PROMPT_LENGTHS, seed: int = 7) -> list[list[int]]:
    """The same token ids in each process."""
    chance = random.Random(seed)
    return [[chance.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(n)] for n in lengths]


def cores_of_each(processes: int) -> str:
    """The list by which an engine gives each process its own cores, where there are enough."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // processes)
    parts = [(cores * processes)[share * i : share * (i + 1)] for i in range(processes)]
    return "|".join(",".join(map(str, part)) for part in parts)


class EngineServer:
    """A server on a free loopback port, stopped with every process it started."""

    # Answers with status 200 once models can be asked.
    ready_path = "/health"

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port = probe.getsockname()[1]
        self.log = log
        self.started_s = 0.0
        variables = {k: v for k, v in os.environ.items() if not k.startswith("MATE_PLUGIN_")}
        variables |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", **env}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, "--host", HOST, "--port", str(self.port)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )

    def wait(self):
        """Until the server is ready; AssertionError with the end of its log if it is not."""
        begin = time.monotonic()
        while time.monotonic() - begin < START_S:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended:\n{self.tail()}")
            try:
                urllib.request.urlopen(f"{self.url}{self.ready_path}", timeout=10)
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
            else:
                self.started_s = time.monotonic() - begin
                return self
        raise AssertionError(f"not ready after {START_S} s:\n{self.tail()}")

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def ended(self) -> int:
        """Exit status of a server that is expected to refuse."""
        return self.process.wait(timeout=START_S)

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.text().splitlines()[-lines:])

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """End the server and every process it started."""
        for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            try:
                self.process.wait(timeout=patience)
            except subprocess.TimeoutExpired:
                continue
        self.process.wait(timeout=10)

    def ask(self, prompt: list[int]) -> Answer:
        """Greedy completion of a prompt of token ids."""
        raise NotImplementedError

    def ask_all(self, questions: Sequence[list[int]], clients: int) -> list[Answer]:
        """The answers to ``questions``, asked by so many clients at the same time."""
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(self.ask, questions))

    def client(self):
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=300)

    def chat(self, text: str) -> str:
        reply = self.client().chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": text}], max_tokens=8
        )
        return reply.choices[0].message.content or ""


def read_reports(directory: Path) -> list[dict]:
    """The newest snapshot of each process, after the writers had time for another one."""
    time.sleep(2.5)
    return [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]

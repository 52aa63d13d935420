"""A vLLM server started by its own command, and what the tests ask it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
START_S = 420
NEW_TOKENS = 32
# Eight prompts of 5 to 400 tokens, below, at and above the 128 of a block.
PROMPT_LENGTHS = (5, 17, 64, 127, 129, 200, 301, 400)
FIRST_TOKEN, LAST_TOKEN = 3, 250


@dataclass(frozen=True)
class Answer:
    """Greedy tokens of one prompt, and per token the logprobs of the best candidates."""

    tokens: list[str]
    top: list[dict[str, float]]


def prompts() -> list[list[int]]:
    """The same token ids in each process."""
    chance = random.Random(7)
    return [[chance.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(n)] for n in PROMPT_LENGTHS]


class Server:
    """``python -m vllm.entrypoints.openai.api_server`` on a free loopback port."""

    def __init__(
        self, model: Path, log: Path, *options: str, env: dict[str, str] | None = None
    ) -> None:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port = probe.getsockname()[1]
        self.log = log
        self.started_s = 0.0
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model), "--served-model-name", "tiny", "--dtype", "bfloat16"),
            *("--host", HOST, "--port", str(self.port)),
            *("--max-model-len", "512", "--max-num-seqs", "8", "--no-enable-prefix-caching"),
            *options,
        ]
        variables = {k: v for k, v in os.environ.items() if not k.startswith("MATE_PLUGIN_")}
        variables |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        } | (env or {})
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )

    def wait(self) -> Server:
        """Until the server is ready; AssertionError with the end of its log if it is not."""
        begin = time.monotonic()
        while time.monotonic() - begin < START_S:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended:\n{self.tail()}")
            try:
                urllib.request.urlopen(f"http://{HOST}:{self.port}/health", timeout=2)
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
            else:
                self.started_s = time.monotonic() - begin
                return self
        raise AssertionError(f"not ready after {START_S} s:\n{self.tail()}")

    def ended(self) -> int:
        """Exit status of a server that is expected to refuse."""
        return self.process.wait(timeout=START_S)

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

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
        """Greedy completion of a prompt of token ids, through the openai client."""
        from openai import OpenAI

        client = OpenAI(base_url=f"http://{HOST}:{self.port}/v1", api_key="none", timeout=300)
        reply = client.completions.create(
            model="tiny",
            prompt=prompt,
            max_tokens=NEW_TOKENS,
            temperature=0.0,
            logprobs=5,
            extra_body={"ignore_eos": True, "return_tokens_as_token_ids": True},
        )
        logprobs = reply.choices[0].logprobs
        return Answer(list(logprobs.tokens), [dict(one) for one in logprobs.top_logprobs])

    def chat(self, text: str) -> str:
        from openai import OpenAI

        client = OpenAI(base_url=f"http://{HOST}:{self.port}/v1", api_key="none", timeout=300)
        reply = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": text}], max_tokens=8
        )
        return reply.choices[0].message.content or ""


def read_reports(directory: Path) -> list[dict]:
    """The newest snapshot of each process, after the writers had time for another one."""
    time.sleep(2.5)
    return [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]

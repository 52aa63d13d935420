"""An SGLang server started by its own command on the platform mate_cpu."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

from engine_server import MODEL, NEW_TOKENS, Answer, EngineServer

PLATFORM = {"SGLANG_PLATFORM": "mate_cpu"}


class SglangServer(EngineServer):
    """``python -m sglang.launch_server`` on a CPU."""

    ready_path = "/ready"

    def __init__(
        self,
        model: Path,
        log: Path,
        *options: str,
        env: dict[str, str] | None = None,
        program: tuple[str, ...] = ("-m", "sglang.launch_server"),
    ) -> None:
        command = [
            *(sys.executable, *program, "--device", "cpu"),
            *("--model-path", str(model), "--served-model-name", MODEL, "--dtype", "bfloat16"),
            *("--mem-fraction-static", "0.3", "--max-total-tokens", "8192"),
            *("--context-length", "512", "--max-running-requests", "8"),
            *options,
        ]
        super().__init__(command, log, PLATFORM | (env or {}))

    def generate(self, **question) -> dict:
        """Reply of SGLang's own ``/generate``."""
        request = urllib.request.Request(
            f"{self.url}/generate",
            json.dumps(question).encode(),
            {"content-type": "application/json"},
        )
        return json.load(urllib.request.urlopen(request, timeout=300))

    def ask(self, prompt: list[int]) -> Answer:
        """Greedy completion of a prompt of token ids."""
        reply = self.generate(
            input_ids=prompt,
            sampling_params={"max_new_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True},
            return_logprob=True,
            top_logprobs_num=5,
        )
        meta = reply["meta_info"]
        tokens = [f"token_id:{token}" for _, token, *_ in meta["output_token_logprobs"]]
        top = [
            {f"token_id:{token}": logprob for logprob, token, *_ in row}
            for row in meta["output_top_logprobs"]
        ]
        return Answer(tokens, top)

    def logprobs_of(self, prompt: list[int], continuation: list[int]) -> list[float]:
        """Logprobs of the tokens of ``continuation``, all read in one go as a prompt."""
        reply = self.generate(
            input_ids=prompt + continuation,
            sampling_params={"max_new_tokens": 1, "temperature": 0},
            return_logprob=True,
            logprob_start_len=len(prompt) - 1,
        )
        rows = reply["meta_info"]["input_token_logprobs"][-len(continuation) :]
        assert [token for _, token, *_ in rows] == continuation
        return [logprob for logprob, *_ in rows]

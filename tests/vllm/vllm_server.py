"""A vLLM server started by its own command, and what the tests ask it."""

from __future__ import annotations

import sys
from pathlib import Path

from engine_server import MODEL, NEW_TOKENS, Answer, EngineServer


class Server(EngineServer):
    """``python -m vllm.entrypoints.openai.api_server``; ``python`` belongs to its environment."""

    def __init__(
        self,
        model: Path,
        log: Path,
        *options: str,
        env: dict[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        command = [
            *(python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model), "--served-model-name", MODEL, "--dtype", "bfloat16"),
            *("--max-model-len", "512", "--max-num-seqs", "8", "--no-enable-prefix-caching"),
            *options,
        ]
        defaults = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        super().__init__(command, log, defaults | (env or {}))

    def ask(self, prompt: list[int]) -> Answer:
        """Greedy completion of a prompt of token ids, through the openai client."""
        reply = self.client().completions.create(
            model=MODEL,
            prompt=prompt,
            max_tokens=NEW_TOKENS,
            temperature=0.0,
            logprobs=5,
            extra_body={"ignore_eos": True, "return_tokens_as_token_ids": True},
        )
        logprobs = reply.choices[0].logprobs
        return Answer(list(logprobs.tokens), [dict(one) for one in logprobs.top_logprobs])

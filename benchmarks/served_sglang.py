"""Tokens per second of a Qwen3-MoE-style model in SGLang, through the plugin and by its own path.

    .venv-sglang/bin/python benchmarks/served_sglang.py

Random weights; FP8 and bf16 through the plugin, bf16 by stock SGLang in plain torch. Stock SGLang
wants ``sgl_kernel``, of which there is no CPU build: the stand-in of the tests takes its place.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mate_plugin.demo.checkpoint import write_checkpoint
from mate_plugin.demo.display import Display
from mate_plugin.demo.engines import SGLANG
from mate_plugin.demo.server import Server

MODEL = "bench"
STOCK = Path(__file__).parent.parent / "tests" / "sglang" / "stock"
SHAPE = {
    "num_hidden_layers": 8,
    "hidden_size": 1024,
    "num_experts": 32,
    "moe_intermediate_size": 512,
    "num_experts_per_tok": 8,
}
FIRST_TOKEN, LAST_TOKEN = 261, 440
PREFILL = 1024
OWN = {"SGLANG_PLATFORM": "", "SGLANG_USE_CPU_ENGINE": "1", "SGLANG_PLUGINS": "none"}
WAYS: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "mate-plugin, FP8": ("fp8", {}, ()),
    "mate-plugin, bf16": ("bf16", {}, ()),
    "SGLang alone, bf16": ("bf16", OWN, ("--attention-backend", "torch_native")),
}


def ask(url: str, length: int, tokens: int, seed: int) -> float:
    """Seconds of one greedy completion."""
    import openai

    chance = random.Random(seed)
    prompt = [chance.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(length)]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=3600)
    begin = time.perf_counter()
    client.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=tokens,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    return time.perf_counter() - begin


def measure(url: str, clients: int, tokens: int, first: int) -> tuple[float, float, float]:
    """Tokens per second: one client decoding, many decoding, one prompt read. Medians of three.

    Prompts are drawn from ``first`` on: one that was asked before would come from the cache.
    """
    rates: list[list[float]] = [[], [], []]
    for seed in range(first, first + 300, 100):
        one = ask(url, 16, tokens, seed) - ask(url, 16, 1, seed + 1)
        rates[0].append((tokens - 1) / one)
        begin = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(lambda i, s=seed: ask(url, 16, tokens, s + 2 + i), range(clients)))
        rates[1].append(clients * tokens / (time.perf_counter() - begin))
        rates[2].append(PREFILL / ask(url, PREFILL, 1, seed + 99))
    one_client, many, prompt = (statistics.median(row) for row in rates)
    return one_client, many, prompt


def main(
    clients: Annotated[int, typer.Option(min=1, help="Clients at the same time.")] = 8,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of each answer.")] = 64,
) -> None:
    """Print a table of the three servers."""
    display, console = Display(), Console(width=max(Console().width, 100))
    shown = Table(
        "served", "1 client", f"{clients} clients", f"prompt of {PREFILL}", title="tokens/s"
    )
    with tempfile.TemporaryDirectory(prefix="mate-plugin-bench-") as folder:
        work = Path(folder)
        models = {
            quant: write_checkpoint(work / quant, "qwen3-moe", quant, overrides=SHAPE)
            for quant in ("fp8", "bf16")
        }
        for number, (name, (quant, environ, options)) in enumerate(WAYS.items()):
            variables = {**SGLANG.environ, "HF_HUB_OFFLINE": "1", **environ}
            if environ:
                variables["PYTHONPATH"] = os.pathsep.join((str(STOCK), *_paths()))
            log = work / f"{number}.log"
            more = ("--max-running-requests", str(clients), "--max-total-tokens", "16384", *options)
            server = Server(
                models[quant], MODEL, log, engine=SGLANG, environ=variables, options=more
            )
            with server, display.stages(f"starting SGLang ({name})") as stages:
                server.wait(600, stages)
                stages(name)
                measure(server.url, clients, 8, first=1000)
                shown.add_row(
                    name, *(f"{r:.1f}" for r in measure(server.url, clients, tokens, first=0))
                )
    console.print(shown)


def _paths() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


if __name__ == "__main__":
    typer.run(main)

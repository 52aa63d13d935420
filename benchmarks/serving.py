"""Tokens per second of one model shape served in several ways, shared by served_*.py.

Random weights of a Qwen3-MoE-style model. Each server is started by its engine's own command and
stopped with all its processes before the next; its counters say whose kernels ran.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from mate_plugin.demo.checkpoint import write_checkpoint
from mate_plugin.demo.display import Display
from mate_plugin.demo.engines import Engine
from mate_plugin.demo.server import Server, ServerError, last_lines

Clients = Annotated[int, typer.Option(min=1, max=900, help="Clients at the same time.")]
Tokens = Annotated[int, typer.Option(min=8, help="Tokens of each answer.")]
Repeats = Annotated[int, typer.Option(min=1, help="Measurements of each kind; medians count.")]

MODEL = "bench"
SHAPE = {
    "num_hidden_layers": 8,
    "hidden_size": 1024,
    "num_experts": 32,
    "moe_intermediate_size": 512,
    "num_experts_per_tok": 8,
}
FIRST_TOKEN, LAST_TOKEN = 261, 440
QUESTION, PREFILL = 16, 1024
START_S = 900.0
# The worker writes its counters once a second.
REPORT_S = 2.5


@dataclass(frozen=True)
class Way:
    """One way to serve: whether our kernels must run in it, and what the server is started with."""

    name: str
    quant: Literal["fp8", "bf16"]
    ours: bool
    environ: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()


@dataclass
class Rates:
    """Tokens per second, a number for each repeat: one client, many, reading one prompt."""

    one: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)
    prompt: list[float] = field(default_factory=list)

    def all(self) -> tuple[list[float], ...]:
        return self.one, self.many, self.prompt


def draw(length: int, seed: int) -> list[int]:
    """A prompt of random tokens, the same for the same seed."""
    chance = random.Random(seed)
    return [chance.randint(FIRST_TOKEN, LAST_TOKEN) for _ in range(length)]


def stream(url: str, prompt: list[int], tokens: int) -> list[float]:
    """Seconds from the question to each token of one greedy completion."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=3600)
    begin = time.perf_counter()
    return [
        time.perf_counter() - begin
        for _ in client.completions.create(
            model=MODEL,
            prompt=prompt,
            max_tokens=tokens,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
    ]


def measure(url: str, clients: int, tokens: int, repeats: int, first: int) -> Rates:
    """One client decoding, many decoding, one prompt read, ``repeats`` times.

    Prompts are drawn from ``first`` on: one that was asked before would come from the cache.
    """
    rates = Rates()
    for seed in range(first, first + 1000 * repeats, 1000):
        arrivals = stream(url, draw(QUESTION, seed), tokens)
        rates.one.append((tokens - 1) / (arrivals[-1] - arrivals[0]))
        questions = [draw(QUESTION, seed + 1 + i) for i in range(clients)]
        begin = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(lambda question: stream(url, question, tokens), questions))
        rates.many.append(clients * tokens / (time.perf_counter() - begin))
        rates.prompt.append(PREFILL / stream(url, draw(PREFILL, seed + 999), 1)[0])
    return rates


def compare(
    engine: Engine,
    ways: Sequence[Way],
    clients: int,
    tokens: int,
    repeats: int,
    eager: bool = True,
    options: Sequence[str] = (),
) -> None:
    """Serve in each way and print a table; the last way is what the others are compared with."""
    display, console = Display(), Console(width=max(Console().width, 110))
    results: dict[str, tuple[str, Rates]] = {}
    with tempfile.TemporaryDirectory(prefix="mate-plugin-bench-") as folder:
        work = Path(folder)
        models: dict[str, Path] = {}
        with display.stages("writing the models") as stages:
            for quant in sorted({way.quant for way in ways}):
                stages(f"writing the model in {quant}")
                models[quant] = write_checkpoint(work / quant, "qwen3-moe", quant, overrides=SHAPE)
        for number, way in enumerate(ways):
            reports, log = work / f"{number}-counts", work / f"{number}.log"
            environ = {
                **engine.environ,
                "HF_HUB_OFFLINE": "1",
                "MATE_PLUGIN_REPORT": str(reports),
                **way.environ,
            }
            server = Server(
                models[way.quant], MODEL, log, engine=engine, eager=eager, environ=environ,
                options=(*options, *way.options),
            )  # fmt: skip
            try:
                with server, display.stages(f"starting {engine.title} ({way.name})") as stages:
                    server.wait(START_S, stages)
                    stages(f"{way.name}: warming up")
                    measure(server.url, clients, 8, 1, first=1_000_000)
                    stages(f"{way.name}: measuring")
                    rates = measure(server.url, clients, tokens, repeats, first=0)
                    time.sleep(REPORT_S)
            except ServerError as error:
                console.print("\n".join((f"{way.name}: {error}", *last_lines(log))), markup=False)
                raise typer.Exit(1) from error
            results[way.name] = (kernels_of(way, reports), rates)
    console.print(table(results, clients))


def kernels_of(way: Way, reports: Path) -> str:
    """Calls of our MoE layers. Ends the benchmark where they ran, or did not, against the way."""
    processes = [json.loads(path.read_text()) for path in reports.glob("*.json")]
    layers = [one for each in processes for one in each["layers"] if one["kind"] == "moe"]
    calls = sum(one["calls"] for one in layers)
    if way.ours != bool(calls):
        expected = "MoE layers of ours" if way.ours else "none of ours"
        raise SystemExit(f"{way.name}: expected {expected} to run, found {calls} calls")
    if not calls:
        return "none"
    return "\n".join(
        (*sorted({each["isa"] for each in processes if each["isa"]}), f"{calls} calls")
    )


def table(results: Mapping[str, tuple[str, Rates]], clients: int) -> Table:
    """Medians with the range of the repeats, and ratios to the last row."""
    shown = Table(
        "served", "MoE layers of ours", "1 client", f"{clients} clients", f"prompt of {PREFILL}",
        title="tokens/s, median (least to most)",
    )  # fmt: skip
    for name, (kernels, rates) in results.items():
        cells = (
            f"{statistics.median(some):.1f}\n({min(some):.1f} to {max(some):.1f})"
            for some in rates.all()
        )
        shown.add_row(name, kernels, *cells)
    *others, last = results
    shown.add_section()
    for name in others:
        pairs = zip(results[name][1].all(), results[last][1].all(), strict=True)
        ratios = (f"{statistics.median(a) / statistics.median(b):.2f}" for a, b in pairs)
        shown.add_row(f"{name} / {last}", "", *ratios)
    return shown

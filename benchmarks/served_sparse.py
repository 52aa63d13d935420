"""Decode speed of a served DeepSeek-V3.2-style model against the length of the context.

    python benchmarks/served_sparse.py                       # 512 to 32k tokens, sparse and dense
    python benchmarks/served_sparse.py --contexts 512,2048   # a first look

One client, one small random FP8 model, two servers: attention over ``index_topk`` tokens, and over
all of them. Each context is asked twice; the second time its prompt comes from the prefix cache, so
that what is measured is decoding. Kernel times are what the server's worker counted meanwhile.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from serving import MODEL, REPORT_S, draw, stream

from mate_plugin.demo.checkpoint import write_checkpoint
from mate_plugin.demo.counts import read_counts, since
from mate_plugin.demo.display import Display
from mate_plugin.demo.server import Server

FAMILY = "deepseek-v3.2"
KERNELS = ("index_topk", "sparse_mla")
BLOCK = 64


@dataclass(frozen=True)
class Decode:
    """Times of one token: median between two, and inside each kernel of the indexer and MLA."""

    seconds: float
    kernels: dict[str, float]


def measure(url: str, reports: Path, context: int, tokens: int) -> Decode:
    """Decode ``tokens`` behind a prompt, so that the contexts are centred on ``context``.

    All but the last token of the prompt fill whole blocks: the prefix cache has them.
    """
    prompt = draw((context - tokens // 2) // BLOCK * BLOCK + 1, seed=context)
    stream(url, prompt, 2)
    time.sleep(REPORT_S)
    before = read_counts(reports)
    arrivals = stream(url, prompt, tokens)
    time.sleep(REPORT_S)
    spent = {one.kernel: one.seconds for one in since(before, read_counts(reports))}
    gaps = [b - a for a, b in itertools.pairwise(arrivals)]
    kernels = {name: spent.get(name, 0.0) / len(arrivals) for name in KERNELS}
    return Decode(statistics.median(gaps), kernels)


def main(
    contexts: Annotated[
        str, typer.Option(help="Lengths of the context in tokens, separated by commas.")
    ] = "512,2048,8192,32768",
    tokens: Annotated[int, typer.Option(min=8, help="Tokens to decode at each.")] = 64,
    index_topk: Annotated[
        int, typer.Option(min=1, help="Tokens that sparse attention reads.")
    ] = 512,
    index_heads: Annotated[int, typer.Option(min=1, help="Heads of the indexer.")] = 64,
) -> None:
    """Print a table of both servers."""
    lengths = [int(part) for part in contexts.split(",")]
    longest = max(lengths) + tokens
    display, console = Display(), Console(width=max(Console().width, 120))
    results: dict[str, dict[int, Decode]] = {}
    with tempfile.TemporaryDirectory(prefix="mate-plugin-bench-") as folder:
        work = Path(folder)
        changes = {
            "index_topk": index_topk,
            "index_n_heads": index_heads,
            "max_position_embeddings": longest,
        }
        model = write_checkpoint(work / "model", FAMILY, size="small", overrides=changes)
        for name, options in (
            (f"top {index_topk}", ()),
            ("all tokens", ("--hf-overrides", json.dumps({"index_topk": longest}))),
        ):
            reports = work / name.replace(" ", "-")
            environ = {
                "MATE_PLUGIN_CONFIG": "deepseek_v32",
                "MATE_PLUGIN_REPORT": str(reports),
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "HF_HUB_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
            }
            caching = ("--enable-prefix-caching", *options)
            log = work / f"{reports.name}.log"
            server = Server(model, MODEL, log, max_length=longest, environ=environ, options=caching)
            with server, display.stages(f"starting vLLM ({name})") as stages:
                server.wait(600, stages)
                for context in lengths:
                    stages(f"{name}, {context} tokens")
                    found = measure(server.url, reports, context, tokens)
                    results.setdefault(name, {})[context] = found
    console.print(table(results, lengths))


def table(results: dict[str, dict[int, Decode]], lengths: list[int]) -> Table:
    """A row per server and context; times in milliseconds a token."""
    shown = Table("attends to", "context", "tokens/s", "ms a token", *(f"{k}, ms" for k in KERNELS))
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, by_context in results.items():
        for context in lengths:
            found = by_context[context]
            shown.add_row(
                name, str(context), f"{1 / found.seconds:.1f}", f"{found.seconds * 1e3:.1f}",
                *(f"{found.kernels[kernel] * 1e3:.2f}" for kernel in KERNELS),
            )  # fmt: skip
        shown.add_section()
    return shown


if __name__ == "__main__":
    typer.run(main)

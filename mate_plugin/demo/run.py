"""``mate-plugin demo``: checkpoint, server, one chat, and a table of the kernels that ran."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mate_plugin.config import load, shipped_configs
from mate_plugin.demo.counts import KernelCount, read_counts, since
from mate_plugin.demo.display import Display
from mate_plugin.demo.engines import Engine, EngineError, choose
from mate_plugin.demo.families import FAMILIES, MAX_LENGTH
from mate_plugin.demo.inspect import CheckpointError, inspect_checkpoint
from mate_plugin.demo.server import Server, ServerError, last_lines

# Files of counters are written once a second.
REPORT_S = 1.5
MODEL_NAME = "mate-plugin-demo"
PROMPT = "Hello! Which kernels answer me?"
# Longer than the index_topk of the checkpoints, so that the indexer leaves tokens out.
SPARSE_PROMPT = (
    "Hello! You read a long question, but not all of it: for each token an indexer scores those "
    "before it and keeps the best, and attention looks at no others. The longer the question, the "
    "more of it stays unread, and the more time is saved. Which kernels answer me?"
)


class DemoError(RuntimeError):
    """The demonstration cannot go on; the message is one readable line."""


@dataclass(frozen=True)
class DemoOptions:
    """What ``mate-plugin demo`` was asked for."""

    model: str = "deepseek-v3"
    prompt: str | None = None
    max_tokens: int = 48
    size: str = "small"
    eager: bool = True
    keep: bool = False
    port: int = 0
    timeout_s: float = 600.0
    engine: str | None = None


@dataclass(frozen=True)
class Answer:
    """One reply of the server: text, tokens, seconds to the first token and in all."""

    text: str
    prompt_tokens: int
    tokens: int
    first_s: float
    total_s: float


def run_demo(options: DemoOptions, display: Display | None = None) -> list[KernelCount]:
    """Run the demonstration; returns what our kernels did during the chat.

    Raises ConfigError, CheckpointError or DemoError with one readable line. The server and the
    temporary files are gone afterwards, also when SIGINT or SIGTERM ended it early.
    """
    display = display or Display()
    # Refuse broken settings here: in the server they would be a line in the middle of its log.
    load()
    try:
        engine = choose(options.engine)
    except EngineError as error:
        raise DemoError(str(error)) from None
    if not (options.eager or engine.compiles):
        raise DemoError(f"--compile: expected --eager with {engine.title}, which runs no other way")
    for module in ("openai", "safetensors", "tokenizers"):
        if importlib.util.find_spec(module) is None:
            how = f"`make {engine.target}` in a checkout installs it"
            raise DemoError(f"{module} is not installed ({how})")
    with _interruptible():
        work = Path(tempfile.mkdtemp(prefix="mate-plugin-demo-"))
        try:
            return _run(options, engine, display, work)
        finally:
            if options.keep:
                display.line(f"Kept {work}")
            else:
                shutil.rmtree(work, ignore_errors=True)


def _run(options: DemoOptions, engine: Engine, display: Display, work: Path) -> list[KernelCount]:
    folder, config = _checkpoint(options, display, work)
    reports = work / "report"
    log = work / "server.log"
    environ = {"MATE_PLUGIN_REPORT": str(reports), "HF_HUB_OFFLINE": "1"}
    defaults = dict(engine.environ)
    # Shipped settings are named after the model_type they are for.
    if config.get("model_type") in shipped_configs():
        defaults["MATE_PLUGIN_CONFIG"] = config["model_type"]
    environ |= {name: value for name, value in defaults.items() if name not in os.environ}
    server = Server(
        folder,
        MODEL_NAME,
        log,
        engine=engine,
        port=options.port,
        eager=options.eager,
        max_length=min(MAX_LENGTH, config.get("max_position_embeddings", MAX_LENGTH)),
        environ=environ,
    )
    mode = "eager" if options.eager else "torch.compile"
    settings = (os.environ | environ).get("MATE_PLUGIN_CONFIG") or "default"
    display.line(
        f"Starting {engine.title}'s OpenAI server on {server.url} ({mode}, settings {settings})"
    )
    prompt = options.prompt
    if prompt is None:
        prompt = SPARSE_PROMPT if "index_topk" in config else PROMPT
    try:
        with server:
            with display.stages("starting Python") as stages:
                server.wait(options.timeout_s, stages)
                stages("asking")
                time.sleep(REPORT_S)
                before = read_counts(reports)
                answer = _ask(server.url, prompt, options)
                time.sleep(REPORT_S)
            counts = since(before, read_counts(reports))
    except ServerError as error:
        _show_log(display, log)
        raise DemoError(str(error)) from None
    display.line(f"\nQuestion: {prompt}\nAnswer:   {answer.text}\n")
    if "index_topk" in config:
        display.line(
            f"The question has {answer.prompt_tokens} tokens, "
            f"of which each token attends to {config['index_topk']} at most"
        )
    rate = (answer.tokens - 1) / max(answer.total_s - answer.first_s, 1e-9)
    display.line(
        f"{answer.tokens} tokens in {answer.total_s:.2f} s: "
        f"the first after {answer.first_s:.2f} s, then {rate:.1f} tokens/s"
    )
    if not counts:
        _show_log(display, log)
        raise DemoError("the model answered, but none of our kernels ran (see mate-plugin doctor)")
    display.kernels(counts)
    return counts


def _checkpoint(options: DemoOptions, display: Display, work: Path) -> tuple[Path, dict[str, Any]]:
    if options.model in FAMILIES:
        from mate_plugin.demo.checkpoint import write_checkpoint

        display.line(f"Writing a random FP8 checkpoint ({options.model}, {options.size})")
        try:
            folder = write_checkpoint(work / "model", options.model, size=options.size)
        except ValueError as error:
            raise DemoError(f"--{error}") from None
        return folder, inspect_checkpoint(folder)
    folder = Path(options.model).expanduser()
    if not folder.exists():
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"--model: expected {known} or a folder, found {options.model!r}")
    config = inspect_checkpoint(folder)
    if "quantization_config" not in config:
        at = f"{folder / 'config.json'}: quantization_config"
        raise CheckpointError(f"{at}: expected that of a block-FP8 model, found none")
    display.line(f"Taking the checkpoint {folder} ({config['architectures'][0]})")
    return folder, config


def _ask(url: str, prompt: str, options: DemoOptions) -> Answer:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=options.timeout_s)
    start = time.monotonic()
    first, asked, tokens, parts = 0.0, 0, 0, []
    try:
        stream = client.chat.completions.create(
            model=MODEL_NAME,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=options.max_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            if chunk.usage is not None:
                asked, tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.monotonic() - start
                parts.append(chunk.choices[0].delta.content)
    except openai.OpenAIError as error:
        raise ServerError(f"the server did not answer the chat: {error}") from None
    return Answer("".join(parts), asked, tokens, first, time.monotonic() - start)


def _show_log(display: Display, log: Path) -> None:
    display.line("The end of the server's log:")
    for line in last_lines(log):
        display.line(f"  | {line}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt, so that every finally block runs."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

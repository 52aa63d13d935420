"""The engines that the demonstration serves with: how each is started and watched."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Requests that are served at the same time.
SEQUENCES = 4


@dataclass(frozen=True)
class Launch:
    """What a server is started with, whatever the engine."""

    model: Path
    name: str
    port: int
    max_length: int
    eager: bool


@dataclass(frozen=True)
class Engine:
    """One engine.

    command: options of ``python`` that start an OpenAI server on the loopback interface.
    environ: variables for it, where the user has not set them.
    stages: patterns of its log in the order of a start, and what they mean to somebody who waits.
    ready: path that it answers with status 200 once it can be asked, and not before.
    compiles: whether it can run with torch.compile on a CPU.
    target: what ``make`` installs it with.
    """

    name: str
    title: str
    command: Callable[[Launch], list[str]]
    environ: Mapping[str, str]
    stages: tuple[tuple[str, str], ...]
    ready: str
    compiles: bool
    target: str

    def installed(self) -> bool:
        """Whether Python would find it; does not import it."""
        return importlib.util.find_spec(self.name) is not None


def _vllm(launch: Launch) -> list[str]:
    # `vllm serve` asks for a distribution named vllm, which CPU builds under another name do not
    # bring, so the module behind it is started instead.
    return [
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(launch.model), "--served-model-name", launch.name),
        *("--host", "127.0.0.1", "--port", str(launch.port), "--dtype", "bfloat16"),
        *("--max-model-len", str(launch.max_length), "--max-num-seqs", str(SEQUENCES)),
        *(("--enforce-eager",) if launch.eager else ()),
    ]


def _sglang(launch: Launch) -> list[str]:
    # Without a number of tokens, the cache would take its fraction of all memory that is free.
    return [
        *("-m", "sglang.launch_server"),
        *("--model-path", str(launch.model), "--served-model-name", launch.name),
        *("--host", "127.0.0.1", "--port", str(launch.port), "--dtype", "bfloat16"),
        *("--context-length", str(launch.max_length), "--max-running-requests", str(SEQUENCES)),
        *("--device", "cpu", "--mem-fraction-static", "0.3"),
        *("--max-total-tokens", str(SEQUENCES * launch.max_length)),
    ]


VLLM = Engine(
    name="vllm",
    title="vLLM",
    command=_vllm,
    environ={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
    stages=(
        (r"non-default args|vLLM API server version", "reading the configuration"),
        (r"Resolved architecture", "setting up the engine"),
        (r"Initializing a V1 LLM engine", "starting the engine"),
        (r"Starting to load model", "building the model"),
        (r"Loading safetensors|Filesystem type for checkpoints", "loading weights"),
        (r"Loading weights took", "preparing weights"),
        (r"Warming up model for the compilation", "compiling the model"),
        (r"KV cache size", "warming up"),
        (r"init engine", "opening the port"),
        (r"Application startup complete", "ready"),
    ),
    ready="/health",
    compiles=True,
    target="demo",
)
SGLANG = Engine(
    name="sglang",
    title="SGLang",
    command=_sglang,
    # Its own platform for CPUs has no FP8 without AMX.
    environ={"SGLANG_PLATFORM": "mate_cpu"},
    stages=(
        (r"server_args=", "starting the engine"),
        (r"Init parallel begin", "setting up the engine"),
        (r"Load weight begin", "loading weights"),
        (r"Load weight end", "warming up"),
        (r"Started server process", "opening the port"),
        (r"Application startup complete", "asking a first question"),
        (r"ready to roll", "ready"),
    ),
    # While it answers, /health makes it generate a token each time.
    ready="/ready",
    compiles=False,
    target="demo-sglang",
)
ENGINES = {engine.name: engine for engine in (VLLM, SGLANG)}


class EngineError(ValueError):
    """The engine that was asked for cannot serve; the message is one readable line."""


def choose(name: str | None) -> Engine:
    """The engine called ``name``, or without one the first of vLLM and SGLang that is installed.

    Raises EngineError where it is not known or not installed.
    """
    known = ", ".join(ENGINES)
    if name is None:
        for engine in ENGINES.values():
            if engine.installed():
                return engine
        how = " or ".join(f"`make {engine.target}`" for engine in ENGINES.values())
        raise EngineError(
            f"--engine: expected one of {known} to be installed, found none ({how} in a checkout "
            "installs it)"
        )
    if name not in ENGINES:
        raise EngineError(f"--engine: expected one of {known}, found {name!r}")
    if not ENGINES[name].installed():
        raise EngineError(
            f"{name} is not installed (`make {ENGINES[name].target}` in a checkout installs it)"
        )
    return ENGINES[name]

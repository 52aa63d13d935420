"""What test_defaults.py runs inside a process with SGLang: its ServerArgs on our platform."""

from __future__ import annotations

import os
from typing import Any


def resolved(*options: str) -> dict[str, Any]:
    """SGLang's arguments for the model in $MODEL, parsed and resolved as its server does."""
    from sglang.srt.server_args import prepare_server_args

    command = ["--model-path", os.environ["MODEL"], "--device", "cpu", "--dtype", "bfloat16"]
    arguments = prepare_server_args([*command, *options])
    arguments.resolve_once()
    return arguments.resolved_dict()


def expect(found: dict[str, Any], **wanted: Any) -> None:
    assert {name: found[name] for name in wanted} == wanted


def mla() -> None:
    """MLA with or without an indexer: our runner, our backend, and the pages it wants."""
    ours = {"moe_runner_backend": "mate", "attention_backend": "mate_dsa", "page_size": 64}
    expect(resolved(), **ours)
    expect(resolved("--attention-backend", "mate_dsa"), **ours)
    expect(resolved("--moe-runner-backend", "mate"), **ours)
    triton = resolved("--moe-runner-backend", "triton")
    expect(triton, **ours | {"moe_runner_backend": "triton"})


def cache_dtype() -> None:
    """The DSA cache is of 16 bits, whatever GPU SGLang would ask for."""
    expect(resolved(), kv_cache_dtype="bfloat16")


def chosen_attention() -> None:
    """Another backend is left alone, and its pages too."""
    found = resolved("--attention-backend", "torch_native", "--page-size", "16")
    expect(found, attention_backend="torch_native", page_size=16, moe_runner_backend="mate")
    expect(resolved("--page-size", "128"), attention_backend="mate_dsa", page_size=128)


def plain() -> None:
    """Attention of heads: our backend in pages of 64, unless others are asked for."""
    ours = {"moe_runner_backend": "mate", "attention_backend": "mate_mha"}
    expect(resolved(), page_size=64, **ours)
    expect(resolved("--attention-backend", "mate_mha"), page_size=64, **ours)
    expect(resolved("--page-size", "1"), page_size=1, **ours)
    found = resolved("--attention-backend", "torch_native", "--page-size", "32")
    expect(found, attention_backend="torch_native", page_size=32)
    expect(resolved("--moe-runner-backend", "triton"), moe_runner_backend="triton")


def seams_off() -> None:
    """What is switched off is not made a default."""
    expect(resolved(), moe_runner_backend="auto", attention_backend="torch_native")

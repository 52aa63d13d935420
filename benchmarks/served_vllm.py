"""Tokens per second of a Qwen3-MoE-style model in vLLM: FP8 through the plugin, bf16 without it.

    python benchmarks/served_vllm.py
    python benchmarks/served_vllm.py --isa avx2 --isa avx512 --compile

Random weights of the same shape. Variables of the caller, VLLM_CPU_OMP_THREADS_BIND for one, reach
both servers. vLLM alone uses whatever the machine has.
"""

from __future__ import annotations

from typing import Annotated

import typer
from serving import Clients, Repeats, Tokens, Way, compare

from mate_plugin.demo.engines import VLLM


def main(
    clients: Clients = 16,
    tokens: Tokens = 64,
    repeats: Repeats = 5,
    isa: Annotated[
        list[str] | None,
        typer.Option(help="Instruction sets of our kernels, a server each; the best by default."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--eager", help="Serve under torch.compile, all of them.")
    ] = False,
) -> None:
    """Print a table of the servers."""
    strict = {"MATE_PLUGIN_STRICT": "1"}
    ways = [
        Way(f"mate-plugin, FP8, {name}", "fp8", True, {**strict, "MATE_PLUGIN_ISA": name})
        for name in isa or ()
    ] or [Way("mate-plugin, FP8", "fp8", True, strict)]
    ways.append(Way("vLLM alone, bf16", "bf16", False, {"VLLM_PLUGINS": ""}))
    seats = ("--max-num-seqs", str(clients))
    compare(VLLM, ways, clients, tokens, repeats, eager=not compiled, options=seats)


if __name__ == "__main__":
    typer.run(main)

"""One whole MoE layer on a CPU beside vLLM's bf16 `cpu_fused_moe` in the same process.

    python benchmarks/cpu_moe.py
    MATE_PLUGIN_ISA=avx2 python benchmarks/cpu_moe.py --peer-isa avx2

Each call draws other experts and goes to the next of several layers, so that no weights wait in a
cache. The floor reads the FP8 weights of the experts that were chosen, or multiplies. Where vLLM is
missing, torch multiplies expert by expert in its place.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from blocks import BLOCK, dequantise, quantised
from limits import Limits, measure_limits, middle
from rich.console import Console
from rich.table import Table
from timing import Budget, Seed, Threads, medians_in_turn, prepare

from mate_plugin.layers.experts import Experts

DRAWS = 64
PEER_ISAS = ("auto", "avx512", "avx2")
# bf16 weights, and activations rounded at other places, set the peers apart from us by this much.
TOLERANCE = {"bf16": 0.03, "fp8": 0.15}


@dataclass(frozen=True)
class Shape:
    """A layer of gated experts."""

    experts: int
    hidden: int
    intermediate: int
    topk: int

    @property
    def expert_numbers(self) -> int:
        """Weights of one expert: gate, up and down."""
        return 3 * self.hidden * self.intermediate


@dataclass(frozen=True)
class Layer:
    """FP8 weights as :class:`Experts` takes them."""

    w13: torch.Tensor
    w13_scale: torch.Tensor
    w2: torch.Tensor
    w2_scale: torch.Tensor

    def in_bf16(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the weights stand for."""
        pairs = ((self.w13, self.w13_scale), (self.w2, self.w2_scale))
        w13, w2 = (
            torch.stack([dequantise(w, s).bfloat16() for w, s in zip(*pair, strict=True)])
            for pair in pairs
        )
        return w13, w2


@dataclass(frozen=True)
class Draw:
    """What one call of a layer is given."""

    hidden: torch.Tensor
    weights: torch.Tensor  # [tokens, topk]
    ids: torch.Tensor
    out: torch.Tensor


# run(number of the layer, what it is given)
Run = Callable[[int, Draw], object]


@dataclass(frozen=True)
class Calls:
    """What layers are called with: choices of experts for the same tokens."""

    draws: list[Draw]

    def of(self, run: Run, layers: int) -> Callable[[], object]:
        """A call that goes to the next draw and the next layer each time."""
        turns = itertools.cycle(zip(itertools.cycle(range(layers)), self.draws, strict=False))
        return lambda: run(*next(turns))

    def floor(self, shape: Shape, limits: Limits) -> tuple[float, str]:
        """Median seconds of the floor over the draws, and what binds there."""
        flops = 2.0 * self.draws[0].ids.numel() * shape.expert_numbers
        touched = [float(draw.ids.unique().numel() * shape.expert_numbers) for draw in self.draws]
        floor = statistics.median(limits.floor(flops, read) for read in touched)
        return floor, limits.binding(flops, statistics.median(touched))


def draw_layers(shape: Shape, count: int) -> list[Layer]:
    """Layers of weights in places of their own; the numbers are the same, moved by an expert."""
    w13, s13 = quantised(shape.experts, 2 * shape.intermediate, shape.hidden)
    w2, s2 = quantised(shape.experts, shape.hidden, shape.intermediate)
    s13, s2 = s13 / shape.hidden**0.5, s2 / shape.intermediate**0.5

    def moved(codes: torch.Tensor, by: int) -> torch.Tensor:
        return codes.view(torch.uint8).roll(by, 0).view(codes.dtype)

    return [Layer(moved(w13, i), s13.roll(i, 0), moved(w2, i), s2.roll(i, 0)) for i in range(count)]


def draw_calls(shape: Shape, tokens: int) -> Calls:
    hidden = torch.randn(tokens, shape.hidden).bfloat16()
    chosen = torch.rand(DRAWS, tokens, shape.experts).topk(shape.topk)
    weights = chosen.values / chosen.values.sum(-1, keepdim=True)
    ids, out = chosen.indices.to(torch.int32), torch.empty_like(hidden)
    return Calls([Draw(hidden, w, i, out) for w, i in zip(weights, ids, strict=True)])


def ours(layers: list[Layer], activation: str, pack: bool) -> Run:
    built = []
    for x in layers:
        # Packing is in place, and the peers are made from the same rows.
        w13, w2 = (w.clone() if pack else w for w in (x.w13, x.w2))
        scales = (x.w13_scale, x.w2_scale)
        built.append(Experts(w13, scales[0], w2, scales[1], (BLOCK, BLOCK), activation, pack=pack))
    return lambda layer, x: built[layer].apply(x.hidden, x.weights, x.ids, x.out)


def by_vllm(layers: list[Layer], isa: str) -> dict[str, Run]:
    """vLLM's layer, with the kernel and the packing that it takes on this CPU."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_PLUGINS"] = ""
    if isa != "auto":
        # vLLM's CPU build holds a library for each and asks torch which one to load.
        torch.cpu._is_avx512_bf16_supported = lambda: False
        torch.cpu._is_avx512_supported = lambda: isa != "avx2"
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    kinds = (cpu_moe.X86CPUUnquantizedExperts, cpu_moe.CPUUnquantizedExperts)
    kind = next(one.isa for one in kinds if one._supports_current_device())
    packed = []
    for layer in layers:
        w13, w2 = layer.in_bf16()
        packed.append(tuple(cpu_moe.cpu_prepack_moe_weight(w, kind) for w in (w13, w2)))

    def run(layer: int, x: Draw) -> None:
        biases = (None, None)
        cpu_moe.cpu_fused_moe(
            x.out, x.hidden, *packed[layer], *biases, x.weights, x.ids, "silu", kind, False
        )

    return {f"vLLM bf16 cpu_fused_moe ({kind}, {isa})": run}


def by_torch(layers: list[Layer]) -> dict[str, Run]:
    """Expert by expert: rows, bf16 product, SwiGLU, bf16 product, weighted sum."""
    full = [layer.in_bf16() for layer in layers]

    def run(layer: int, x: Draw) -> None:
        w13, w2 = full[layer]
        sums = torch.zeros(x.hidden.shape, dtype=torch.float32)
        for expert in x.ids.unique().tolist():
            token, place = (x.ids == expert).nonzero(as_tuple=True)
            gate, up = (x.hidden[token] @ w13[expert].t()).chunk(2, 1)
            down = (torch.nn.functional.silu(gate) * up) @ w2[expert].t()
            sums.index_add_(0, token, down * x.weights[token, place, None])
        x.out.copy_(sums)

    return {"torch bf16, expert by expert": run}


def check(mine: Run, theirs: Run, calls: Calls, activation: str) -> None:
    """Raise unless both give the same numbers: a wrong layer has no speed."""
    results = []
    for run in (mine, theirs):
        run(0, calls.draws[0])
        results.append(calls.draws[0].out.float())
    apart = (results[0] - results[1]).norm() / results[1].norm()
    if not apart <= TOLERANCE[activation]:
        raise SystemExit(f"activation {activation}: ours is off by {apart:.3g} of the peer's norm")


def main(
    tokens: Annotated[
        str, typer.Option(help="Tokens of a call, separated by commas.")
    ] = "1,16,128",
    experts: Annotated[int, typer.Option(min=1)] = 32,
    hidden: Annotated[int, typer.Option(min=1)] = 2048,
    intermediate: Annotated[int, typer.Option(min=1)] = 768,
    topk: Annotated[int, typer.Option(min=1)] = 8,
    layers: Annotated[int, typer.Option(min=1, help="Layers that calls take turns with.")] = 4,
    peer: Annotated[bool, typer.Option(help="Measure vLLM or torch too.")] = True,
    peer_isa: Annotated[
        str, typer.Option(help="vLLM's library: avx512, avx2, or auto, which is vLLM's choice.")
    ] = "auto",
    threads: Threads = 0,
    budget: Budget = 1.0,
    seed: Seed = 0,
) -> None:
    """Print the table."""
    if peer_isa not in PEER_ISAS:
        raise typer.BadParameter(f"expected one of {', '.join(PEER_ISAS)}, got {peer_isa}")
    setting = prepare(threads, seed)
    shape = Shape(experts, hidden, intermediate, topk)
    console = Console(width=max(Console().width, 120))
    with console.status("drawing weights"):
        drawn = draw_layers(shape, layers)
        rivals: dict[str, Run] = {}
        if peer:
            vllm = importlib.util.find_spec("vllm") is not None
            rivals = by_vllm(drawn, peer_isa) if vllm else by_torch(drawn)
        # As they are served: packed, where the kernels read packed weights.
        mine = {}
        for kind in TOLERANCE:
            mine[f"weights, {kind} activations"] = (kind, ours(drawn, kind, True))
        mine["weights in rows, bf16 activations"] = ("bf16", ours(drawn, "bf16", False))

    table = Table("tokens", "implementation", "us", "peer / ours", "floor, us", "of the floor")
    for column in table.columns[2:]:
        column.justify = "right"
    limits: list[Limits] = []
    for count in (int(part) for part in tokens.split(",")):
        with console.status(f"measuring {count} tokens"):
            calls = draw_calls(shape, count)
            limits.append(measure_limits(3))
            floor, binding = calls.floor(shape, limits[-1])
            for theirs, (kind, run) in itertools.product(rivals.values(), mine.values()):
                check(run, theirs, calls, kind)
            runs = {f"ours, fp8 {name}": run for name, (_, run) in mine.items()}
            turns = {name: calls.of(run, layers) for name, run in (runs | rivals).items()}
            seconds = medians_in_turn(turns, budget)
            peers = [seconds[name] for name in rivals]
            for number, (name, one) in enumerate(seconds.items()):
                shown = ["", "", ""]
                if name in runs:
                    ratio = f"{peers[0] / one:.2f}" if peers else ""
                    shown = [ratio, f"{floor * 1e6:.0f} ({binding})", f"{floor / one:.0%}"]
                table.add_row("" if number else str(count), name, f"{one * 1e6:.0f}", *shown)
            table.add_section()
    console.print(
        f"{setting}: {middle(limits).describe()}; "
        f"E {experts} H {hidden} I {intermediate} top-{topk}, {layers} layers in turn",
        soft_wrap=True,
    )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)

"""Measures what roofline.py asks for, with the instruction set that this process was started with.

MATE_PLUGIN_ISA=avx2 python benchmarks/roofline_measure.py '<a plan as JSON>'
"""

from __future__ import annotations

import itertools
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from blocks import BLOCK, dequantise, quantised
from limits import Limits, measure_limits, middle
from rich.console import Console
from rich.progress import Progress
from timing import median_seconds, prepare

from mate_plugin.kernels import gemm, library, packing

# What separates our result from the float32 peer's: a rounding to bf16.
TOLERANCE = 2.0**-7


@dataclass(frozen=True)
class Plan:
    """One grouped GEMM ``[busy * m, k] x [experts, n, k]`` for each m in ``rows``.

    sets: groups of ``busy`` experts that calls take turns with, so that none finds its weights in
        a cache.
    longest: a peer that took so many seconds is not asked for more rows.
    """

    to: str
    rows: tuple[int, ...]
    experts: int
    busy: int
    n: int
    k: int
    sets: int
    threads: int
    budget: float
    longest: float
    peers: bool
    seed: int


@dataclass(frozen=True)
class Series:
    """One implementation: ``prepare(m)`` gives the call to be timed; weights as it stores them."""

    name: str
    ours: bool
    weight_bytes: float
    prepare: Callable[[int], Callable[[], object]]


class Weights:
    """FP8 weights of which only the busy experts are ever touched, and so take memory."""

    def __init__(self, plan: Plan) -> None:
        self.codes = torch.empty(plan.experts, plan.n, plan.k, dtype=torch.float8_e4m3fn)
        blocks = (-(-plan.n // BLOCK), -(-plan.k // BLOCK))
        self.scale = torch.rand(plan.experts, *blocks) + 0.5
        drawn = torch.randperm(plan.experts)[: plan.sets * plan.busy].view(plan.sets, plan.busy)
        self.sets = [sorted(one) for one in drawn.tolist()]
        self.packed = torch.empty_like(self.codes) if self._packs() else None
        codes, _ = quantised(plan.n, plan.k)
        for expert in itertools.chain(*self.sets):
            # Rolled copies cost less to make than random numbers, and no less to read.
            self.codes[expert] = codes.view(torch.uint8).roll(expert, 0).view(codes.dtype)
            if self.packed is not None:
                packing.pack_weights(self.packed[expert].copy_(self.codes[expert]), in_place=True)

    def _packs(self) -> bool:
        return packing.why_not(torch.empty_like(self.codes[:1]).zero_()) is None

    def counts(self, m: int) -> Iterator[torch.Tensor]:
        """Rows of each expert, for one set after the other without end."""
        made = []
        for chosen in self.sets:
            made.append(torch.zeros(len(self.scale), dtype=torch.int32))
            made[-1][chosen] = m
        return itertools.cycle(made)


def our_series(plan: Plan, weights: Weights) -> list[Series]:
    rows = (weights.codes, weights.scale)
    stored = float(plan.busy * plan.n * plan.k)

    def out(m: int) -> torch.Tensor:
        return torch.empty(plan.busy * m, plan.n, dtype=torch.bfloat16)

    def w8a16(pair: tuple[torch.Tensor, torch.Tensor]) -> Callable[[int], Callable[[], object]]:
        def prepare_rows(m: int) -> Callable[[], object]:
            x, to, counts = inputs(plan, m), out(m), weights.counts(m)
            return lambda: gemm.ragged_m_moe_gemm_w8a16(
                x, pair, next(counts), to, gemm_mode="per_expert", alignment_m=1
            )

        return prepare_rows

    def w8a8(m: int) -> Callable[[], object]:
        x, to, counts = inputs(plan, m).to(torch.float8_e4m3fn), out(m), weights.counts(m)
        scale = torch.rand(len(x), -(-plan.k // BLOCK)) + 0.5
        return lambda: gemm.ragged_m_moe_gemm_8bit(
            (x, scale), rows, next(counts), to, gemm_mode="per_expert", alignment_m=1
        )

    found = [
        Series("fp8 x bf16", True, stored, w8a16(rows)),
        Series("fp8 x fp8", True, stored, w8a8),
    ]
    if weights.packed is not None:
        # What a served layer runs, where the kernels read packed weights.
        packed = (packing.packed_view(weights.packed), weights.scale)
        found.insert(0, Series("fp8 x bf16, packed", True, stored, w8a16(packed)))
    return found


def peer_series(plan: Plan, weights: Weights) -> list[Series]:
    """Torch's ways, expert by expert; what can be done ahead of the call is."""
    chosen = weights.sets[0]
    codes, scale = weights.codes[chosen], weights.scale[chosen]
    full = torch.stack([dequantise(c, s) for c, s in zip(codes, scale, strict=True)])
    half = full.to(torch.bfloat16)
    packed = pack(half)
    stored, one = float(codes.numel()), torch.ones(())

    def by_expert(dtype: torch.dtype, multiply: Callable) -> Callable[[int], Callable]:
        def prepare_rows(m: int) -> Callable[[], object]:
            parts = inputs(plan, m).to(dtype).split(m)
            return lambda: [multiply(x, e) for e, x in enumerate(parts)]

        return prepare_rows

    f32, bf16, fp8 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
    found = [
        Series("f32 matmul, f32 weights", False, 4 * stored,
               by_expert(f32, lambda x, e: x @ full[e].t())),
        Series("bf16 matmul, bf16 weights", False, 2 * stored,
               by_expert(bf16, lambda x, e: x @ half[e].t())),
        Series("dequantise + f32 matmul", False, stored,
               by_expert(f32, lambda x, e: x @ dequantise(codes[e], scale[e]).t())),
        Series("torch._scaled_mm fp8", False, stored,
               by_expert(fp8, lambda x, e: torch._scaled_mm(
                   x, codes[e].t(), one, one, out_dtype=bf16))),
    ]  # fmt: skip
    if packed:
        linear = torch.ops.mkldnn._linear_pointwise
        multiply = by_expert(bf16, lambda x, e: linear(x, packed[e], None, "none", [], ""))
        found.insert(2, Series("bf16 matmul, packed weights", False, 2 * stored, multiply))
    return found


def pack(weights: torch.Tensor) -> list[torch.Tensor]:
    """bf16 weights in oneDNN's own layout; empty where this torch has no such call."""
    try:
        return [torch.ops.mkldnn._reorder_linear_weight(w) for w in weights]
    except (AttributeError, RuntimeError, TypeError):
        return []


def inputs(plan: Plan, m: int) -> torch.Tensor:
    """The same rows for everybody."""
    generator = torch.Generator().manual_seed(plan.seed + m)
    return torch.randn(plan.busy * m, plan.k, generator=generator).to(torch.bfloat16)


def check(ours: torch.Tensor, theirs: list[torch.Tensor]) -> None:
    """Raise unless ours are the float32 peer's numbers: a wrong kernel has no speed."""
    expected = torch.cat(theirs)
    worst = (ours.float() - expected).abs().max() / expected.abs().max()
    if not worst <= TOLERANCE:
        raise SystemExit(f"our result is off by {worst:.3g} of the largest number")


def point(series: Series, plan: Plan, m: int, seconds: float, limits: Limits) -> dict:
    flops = 2.0 * plan.busy * m * plan.n * plan.k
    floor = limits.floor(flops, float(plan.busy * plan.n * plan.k))
    return {
        "name": series.name,
        "ours": series.ours,
        "m": m,
        "seconds": seconds,
        "gflops": flops / seconds / 1e9,
        "gb_s": series.weight_bytes / seconds / 1e9,
        "floor_s": floor,
        "binding": limits.binding(flops, float(plan.busy * plan.n * plan.k)),
        "limits": asdict(limits),
    }


def processor() -> str:
    """Its name as the system gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def main(plan: Plan) -> None:
    setting = prepare(plan.threads, plan.seed)
    weights = Weights(plan)
    series = our_series(plan, weights) + (peer_series(plan, weights) if plan.peers else [])
    by_name = {one.name: one for one in series}
    if plan.peers:
        theirs = by_name["f32 matmul, f32 weights"].prepare(plan.rows[0])()
        for one in ("fp8 x bf16", "fp8 x bf16, packed"):
            if one in by_name:
                check(by_name[one].prepare(plan.rows[0])(), theirs)  # type: ignore[arg-type]
    points, limits = [], []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(setting, total=len(plan.rows) * len(series))
        for m in plan.rows:
            # Shared machines drift: each row count is held against the limits of its own minute.
            limits.append(measure_limits(3))
            for one in list(series):
                progress.update(task, description=f"{library.isa()}, m {m}: {one.name}", advance=1)
                seconds = median_seconds(one.prepare(m), plan.budget, plan.longest)
                points.append(point(one, plan, m, seconds, limits[-1]))
                if not one.ours and seconds > plan.longest:
                    series.remove(one)
    result = {
        "machine": processor(),
        "isa": library.isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "plan": asdict(plan),
        "limits": asdict(middle(limits)),
        "points": points,
    }
    Path(plan.to).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])))

"""Kernels on a GPU beside DeepGEMM (where that is installed) and device copies, in one process.

    python benchmarks/gpu.py                       # everything
    python benchmarks/gpu.py gemm --only masked    # one family, cases by name
    python benchmarks/gpu.py --json > gpu.json

Random data, the L2 cache emptied before each call, medians of times between CUDA events; calls of
ours and of the peer take turns.
"""

from __future__ import annotations

import gc
import importlib
import json
from collections.abc import Iterator
from typing import Annotated, Any

import gpu_gemm
import gpu_indexer
import gpu_pieces
import torch
import typer
from gpu_timing import Case, Named, bf16_rate, copy_bandwidth, median_us, medians_us
from rich.console import Console
from rich.table import Table

from mate_plugin.kernels import library, select

FAMILIES = ("gemm", "indexer", "pieces")
# Results of both libraries are rounded to bf16 and summed in different orders.
ALIKE = 1e-3

Row = dict[str, Any]


def peer_module() -> Any | None:
    try:
        return importlib.import_module("deep_gemm")
    except (ImportError, OSError):
        return None


def cases(families: list[str], peer: Any | None) -> Iterator[tuple[str, Named]]:
    for family in families:
        module = {"gemm": gpu_gemm, "indexer": gpu_indexer}.get(family)
        yield from (
            (family, case) for case in (module.cases(peer) if module else gpu_pieces.cases())
        )


def measure(family: str, name: str, case: Case, repeats: int) -> Row:
    """Times of ours and of the peer, in turns."""
    library.reset_counters()
    case.ours()
    impls = sorted({count["impl"] for count in library.counters()})
    row: Row = {"family": family, "case": name, "impl": "+".join(impls)}
    ours, theirs, fault = 0.0, None, ""
    if case.peer is not None:
        try:
            ours, theirs = medians_us([case.ours, case.peer], repeats)
            if case.differ is not None:
                with torch.device("cuda"):
                    apart = case.differ()
                if not apart <= ALIKE:  # or NaN
                    fault = f"results differ by {apart:.2g}"
        except Exception as error:
            # A peer that cannot run a case is no reason to measure nothing.
            fault = f"peer: {type(error).__name__}: {' '.join(str(error).split())[:80]}"
    ours = ours or median_us(case.ours, repeats)
    return row | {
        "us": ours,
        "tflops": case.flops / ours / 1e6,
        "gbs": case.num_bytes / ours / 1e3,
        "peer_us": theirs,
        "ratio": theirs / ours if theirs else None,
        "fault": fault,
    }


def main(
    families: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(FAMILIES)}; all unless given.")
    ] = None,
    only: Annotated[str, typer.Option(help="Cases whose name contains this.")] = "",
    repeats: Annotated[int, typer.Option(help="Timed calls of each.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the random data.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure and print."""
    chosen = families or list(FAMILIES)
    if unknown := set(chosen) - set(FAMILIES):
        raise typer.BadParameter(f"expected any of {', '.join(FAMILIES)}, got {unknown.pop()}")
    choice = select.choose("ragged_m_gemm", "cuda")
    if choice.impl is None:
        raise typer.BadParameter(choice.reason)
    torch.manual_seed(seed)
    peer = peer_module()
    card = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "impl": choice.impl,
        "peer": f"deep_gemm {getattr(peer, '__version__', '')}".strip() if peer else None,
        "bf16_tflops": bf16_rate(repeats),
        "copy_gbs": copy_bandwidth(repeats),
    }
    rows: list[Row] = []
    progress = Console(stderr=True, width=150)
    for family, (name, make) in cases(chosen, peer):
        if only in name:
            # While calls are timed a default device would cost each torch function several us.
            with torch.device("cuda"):
                case = make()
            rows.append(row := measure(family, name, case, repeats))
            beside = f", peer {row['peer_us']:.1f} us" if row["peer_us"] else ""
            progress.print(f"{name}: {row['us']:.1f} us{beside} {row['fault']}", highlight=False)
        gc.collect()
        torch.cuda.empty_cache()
    if as_json:
        print(json.dumps({"card": card, "rows": rows}, indent=1))
    else:
        show(card, rows)


def show(card: Row, rows: list[Row]) -> None:
    console = Console(width=max(Console().width, 150))
    console.print(
        f"{card['device']}, torch {card['torch']}, {card['impl']} kernels,"
        f" {card['peer'] or 'deep_gemm is not installed'}:"
        f" bf16 8192^3 {card['bf16_tflops']:.0f} TFLOP/s, device copy {card['copy_gbs']:.0f} GB/s"
    )
    table = Table("case", "kernels", "us", "TFLOP/s", "GB/s", "peer us", "times faster", "")
    for column in table.columns[2:7]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row["case"],
            row["impl"],
            f"{row['us']:.1f}",
            f"{row['tflops']:.0f}" if row["tflops"] else "",
            f"{row['gbs']:.0f}",
            f"{row['peer_us']:.1f}" if row["peer_us"] else "",
            f"{row['ratio']:.2f}" if row["ratio"] else "",
            row["fault"],
        )
    console.print(table)
    for family in FAMILIES:
        ratios = [row["ratio"] for row in rows if row["family"] == family and row["ratio"]]
        if ratios:
            mean = float(torch.tensor(ratios, device="cpu").log().mean().exp())
            console.print(f"{family}: {mean:.2f} times the peer's speed over {len(ratios)} cases")


if __name__ == "__main__":
    typer.run(main)

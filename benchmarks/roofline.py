"""Grouped GEMMs of a MoE layer from one row an expert to a thousand, against the machine's limits.

    python benchmarks/roofline.py                     # each instruction set of this machine
    python benchmarks/roofline.py --quick --isa avx2  # small weights, four row counts
    python benchmarks/roofline.py plot FILE.json ...  # figures of numbers measured elsewhere

Writes roofline-ISA.json, .csv and .png. Each instruction set has a process of its own, since it is
chosen once in each. Limits are measured again beside each row count, and peers use whatever the
machine has. Without matplotlib the numbers alone are written.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from roofline_measure import Plan
from timing import Budget, Seed, Threads

from mate_plugin.kernels import library

ROWS = "1,2,4,8,16,32,64,128,256,512,1024"
QUICK_ROWS, QUICK_SIZE = "1,8,64,256", (1024, 4096)
HERE = Path(__file__).parent
COLUMNS = ("isa", "threads", "m", "name", "seconds", "gflops", "gb_s", "floor_s", "binding")

Out = Annotated[Path, typer.Option(help="Folder to write into.")]
app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def measure(
    context: typer.Context,
    isa: Annotated[
        list[str] | None, typer.Option(help="Instruction sets; all but scalar by default.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Small weights and four row counts.")] = False,
    rows: Annotated[str, typer.Option(help="Rows of each busy expert, with commas.")] = "",
    experts: Annotated[int, typer.Option(min=1, help="Experts of the layer.")] = 64,
    busy: Annotated[int, typer.Option(min=1, help="Those that have rows.")] = 8,
    n: Annotated[int, typer.Option("-n", min=1, help="Columns of the result.")] = 4096,
    k: Annotated[int, typer.Option("-k", min=1, help="Length of the sums.")] = 7168,
    sets: Annotated[int, typer.Option(min=1, help="Groups of busy experts to take turns.")] = 2,
    peers: Annotated[bool, typer.Option(help="Measure torch too.")] = True,
    longest: Annotated[
        float, typer.Option(help="Seconds of a call after which a peer gets no more rows.")
    ] = 5.0,
    threads: Threads = 0,
    budget: Budget = 0.5,
    seed: Seed = 0,
    out: Out = HERE / "out",
) -> None:
    """Measure, and write numbers and figures."""
    if context.invoked_subcommand:
        return
    if sets * busy > experts:
        raise typer.BadParameter(f"expected sets x busy of at most {experts} experts, got {sets}")
    known = library.available_isas()
    chosen = isa or [name for name in known if name != "scalar"] or known
    if unknown := set(chosen) - set(known):
        raise typer.BadParameter(f"expected any of {', '.join(known)}, got {', '.join(unknown)}")
    if quick:
        rows, (n, k), budget = rows or QUICK_ROWS, QUICK_SIZE, min(budget, 0.1)
    counts = tuple(int(part) for part in (rows or ROWS).split(","))
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=max(Console().width, 130))
    files = []
    for name in chosen:
        file = out / f"roofline-{name}.json"
        plan = Plan(
            to=str(file), rows=counts, experts=experts, busy=busy, n=n, k=k, sets=sets,
            threads=threads, budget=budget, longest=longest, peers=peers, seed=seed,
        )  # fmt: skip
        command = [sys.executable, str(HERE / "roofline_measure.py"), json.dumps(asdict(plan))]
        status = subprocess.call(command, env={**os.environ, "MATE_PLUGIN_ISA": name})
        if status:
            raise typer.Exit(1)
        result = json.loads(file.read_text())
        write_csv(result, file.with_suffix(".csv"))
        console.print(table(result))
        files.append(file)
    draw(files, console)


@app.command()
def plot(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False)],
) -> None:
    """Draw a figure beside each of FILES, which an earlier run wrote."""
    draw(files, Console())


def draw(files: list[Path], console: Console) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        names = " ".join(str(file) for file in files)
        console.print(
            "No figures, since matplotlib is not installed (requirements/bench.txt). Later or "
            f"elsewhere: python benchmarks/roofline.py plot {names}",
            soft_wrap=True,
        )
        return
    from roofline_plot import figure

    for file in files:
        figure(json.loads(file.read_text()), file.with_suffix(".png"))
        console.print(f"{file.with_suffix('.png')}", soft_wrap=True)


def write_csv(result: dict[str, Any], path: Path) -> None:
    limits = tuple(result["limits"])
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*COLUMNS, *(f"limit_{name}" for name in limits)))
        for one in result["points"]:
            flat = {**result, **one}
            writer.writerow([flat[c] for c in COLUMNS] + [one["limits"][name] for name in limits])


def table(result: dict[str, Any]) -> Table:
    """Times of everybody; for ours the share of the limits that were measured beside them."""
    plan, limits = result["plan"], result["limits"]
    kinds = [name for name in ("fma", "bf16", "tile", "reads") if limits[name]]
    rates = ", ".join(f"{name} {limits[name]:.4g}" for name in kinds)
    shown = Table(
        "m", "implementation", "ms", "GFLOP/s", "GB/s", *(f"of {name}" for name in kinds),
        "of floor", "time / ours",
        title=f"{result['isa']}, {result['threads']} threads, {plan['busy']} of {plan['experts']} "
        f"experts, n {plan['n']}, k {plan['k']}; {rates}",
    )  # fmt: skip
    for column in shown.columns[2:]:
        column.justify = "right"
    for m in plan["rows"]:
        points = [one for one in result["points"] if one["m"] == m]
        for number, one in enumerate(points):
            own = one["limits"]
            shares = [
                f"{one['gb_s' if name == 'reads' else 'gflops'] / own[name]:.0%}" for name in kinds
            ]
            shown.add_row(
                "" if number else str(m), ("ours, " if one["ours"] else "") + one["name"],
                f"{one['seconds'] * 1e3:.2f}", f"{one['gflops']:.1f}", f"{one['gb_s']:.1f}",
                *shares, f"{one['floor_s'] / one['seconds']:.0%} ({one['binding']})"
                if one["ours"] else "",
                f"{one['seconds'] / points[0]['seconds']:.2f}",
            )  # fmt: skip
        shown.add_section()
    return shown


if __name__ == "__main__":
    app()

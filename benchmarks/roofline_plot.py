"""The figure of one roofline run: rates against rows, beneath the limits of the machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

OURS = {
    "fp8 x bf16, packed": ("#0b5fa5", "o"),
    "fp8 x bf16": ("#6aa6d8", "o"),
    "fp8 x fp8": ("#d1495b", "s"),
}
PEERS = {
    "f32 matmul, f32 weights": ("#6c757d", "^"),
    "bf16 matmul, bf16 weights": ("#2a9d8f", "v"),
    "bf16 matmul, packed weights": ("#8ac6bd", "v"),
    "dequantise + f32 matmul": ("#b08968", "D"),
    "torch._scaled_mm fp8": ("#b5a1c9", "X"),
}
LIMITS = {
    "fma": "float32 multiply-adds",
    "bf16": "bf16 pairs (AVX-512 BF16)",
    "tile": "bf16 tiles (AMX)",
}
ROOF = {"color": "black", "linewidth": 1.2}


def figure(result: dict[str, Any], to: Path) -> None:
    """Write the PNG ``to``."""
    plan, limits = result["plan"], result["limits"]
    picture = pyplot.figure(figsize=(15, 8.5), layout="constrained")
    grid = picture.add_gridspec(2, 2, width_ratios=(1.45, 1))
    rates, reads, shares = (
        picture.add_subplot(grid[place]) for place in ((slice(None), 0), (0, 1), (1, 1))
    )
    rows = sorted({one["m"] for one in result["points"]})
    _products(rates, rows, limits)
    _reads(reads, rows, limits)
    for name in dict.fromkeys(one["name"] for one in result["points"]):
        points = [one for one in result["points"] if one["name"] == name]
        m = [one["m"] for one in points]
        style = _style(points[0])
        rates.plot(m, [one["gflops"] for one in points], **style)
        reads.plot(m, [one["gb_s"] for one in points], **style)
        if points[0]["ours"]:
            shares.plot(m, [one["floor_s"] / one["seconds"] for one in points], **style)
    _shares(shares)
    for axes in (rates, reads):
        # Room for the labels above the highest line.
        axes.set_ylim(top=axes.get_ylim()[1] * 1.5)
    for axes in (rates, reads, shares):
        axes.set_xscale("log", base=2)
        axes.set_xticks(rows, [str(m) for m in rows])
        axes.minorticks_off()
        axes.set_xlabel("rows of each busy expert (m)")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = rates.get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    picture.suptitle(
        f"Grouped FP8 GEMM, {plan['busy']} of {plan['experts']} experts busy, n {plan['n']}, "
        f"k {plan['k']}\n{result['machine']}, {result['threads']} threads, "
        f"{result['isa']}; torch {result['torch']}",
        fontsize=13,
    )
    picture.savefig(to, dpi=130)
    pyplot.close(picture)


def _style(point: dict[str, Any]) -> dict[str, Any]:
    ours = point["ours"]
    colour, marker = (OURS if ours else PEERS).get(point["name"], ("#444444", "."))
    return {
        "label": f"ours, {point['name']}" if ours else point["name"],
        "color": colour,
        "marker": marker,
        "markersize": 7 if ours else 5,
        "linewidth": 2.4 if ours else 1.2,
        "linestyle": "-" if ours else "--",
        "zorder": 4 if ours else 3,
    }


def _products(axes: Axes, rows: list[int], limits: dict[str, float | None]) -> None:
    """GFLOP/s under each peak of products and under what reads of FP8 weights allow."""
    bandwidth = limits["reads"] or 0.0
    peaks = {name: rate for name in LIMITS if (rate := limits[name])}
    highest = max(peaks.values())
    for name, peak in peaks.items():
        axes.axhline(peak, **ROOF, linestyle="-" if peak == highest else ":")
        _label(axes, rows[-1], peak, f"{LIMITS[name]}: {peak:,.0f} GFLOP/s", "right")
    first, slope = rows[0], 2 * bandwidth
    last = min(rows[-1], highest / slope)
    if last > first:
        axes.plot([first, last], [slope * first, slope * last], **ROOF)
        # Written along the line, whatever its angle on paper comes to be.
        axes.text(
            first, 1.12 * slope * first, f"reads: {bandwidth:.1f} GB/s", fontsize=9,
            rotation=math.degrees(math.atan(1.12 * slope)), rotation_mode="anchor",
            transform_rotates_text=True,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("Products", loc="left")


def _reads(axes: Axes, rows: list[int], limits: dict[str, float | None]) -> None:
    """GB/s of weights, each as it is stored; FP8 ones under both limits."""
    bandwidth = limits["reads"] or 0.0
    peak = max(limits[name] or 0.0 for name in LIMITS)
    axes.axhline(bandwidth, **ROOF)
    _label(axes, rows[-1], bandwidth, f"reads: {bandwidth:.1f} GB/s", "right")
    line = [min(bandwidth, peak / (2 * m)) for m in rows]
    axes.plot(rows, line, **ROOF, linestyle=":")
    axes.set_yscale("log")
    axes.set_ylabel("GB/s of weights, as stored")
    axes.set_title("Reads (dotted: what products leave of them to FP8 weights)", loc="left")


def _label(axes: Axes, x: float, y: float, text: str, side: Literal["left", "right"]) -> None:
    axes.annotate(
        text, (x, y), (0, 3), textcoords="offset points", fontsize=9, ha=side, zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
    )  # fmt: skip


def _shares(axes: Axes) -> None:
    axes.axhline(1.0, **ROOF)
    text = "floor: the slower of reading the weights and multiplying"
    _label(axes, axes.get_xlim()[1], 1.0, text, "right")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, max(1.15, axes.get_ylim()[1]))
    axes.set_ylabel("of the floor's speed")
    axes.set_title("Ours against the floor", loc="left")

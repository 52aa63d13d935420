"""Runs cases in a process of its own, which a kernel may crash or hang: ``python -m``.

Arguments: a JSON object {device, cases, timed} and the number of a file descriptor, to which a line
of JSON goes before each case and after it. ``MATE_PLUGIN_IMPL`` names the implementation.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
from typing import Any

import torch

from mate_plugin.findings import one_line
from mate_plugin.kernels import library
from mate_plugin.trial import BROUGHT_BY
from mate_plugin.trial.cases import CASES, LARGE, SMALL, Call, Case, Outputs

# Largest error over the largest value: a unit in the last place, which sums of another order may be
# rounded to, and the difference of the sums; for FP8 one code.
TOLERANCES = {
    torch.float32: 1e-3,
    torch.bfloat16: 9e-3,
    torch.float16: 2e-3,
    torch.float8_e4m3fn: 0.08,
}
# The selection among scores that differ by rounding alone; other numbers are exact.
INDEX_TOLERANCE = {"index_topk": 0.01}
SECONDS = 0.2  # that a measurement takes


def compare(case: Case, found: Outputs, expected: Outputs) -> tuple[float, float]:
    """The error of the output that is furthest off its tolerance, and that tolerance."""
    pairs = [_error(case, x.cpu(), y) for x, y in zip(found, expected, strict=True)]
    return max(pairs, key=lambda pair: pair[0] - pair[1])


def _error(case: Case, found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf"), 0.0
    tolerance = TOLERANCES.get(expected.dtype)
    if tolerance is None:
        differing = (found != expected).double().mean() if expected.numel() else torch.zeros(())
        return float(differing), INDEX_TOLERANCE.get(case.name, 0.0)
    a, b = found.double(), expected.double()
    finite = b.isfinite()
    if not torch.equal(a[~finite].nan_to_num(nan=7.0), b[~finite].nan_to_num(nan=7.0)):
        return float("inf"), tolerance
    if not finite.any():
        return 0.0, tolerance
    error = (a[finite] - b[finite]).abs().max() / b[finite].abs().max().clamp(min=1e-30)
    return float(error.nan_to_num(nan=float("inf"))), tolerance


def served(case: Case, call: Call) -> tuple[Outputs, str]:
    """What the call gives, and the implementation that the counters name."""
    library.reset_counters()
    out = call()
    rows = {row["impl"] for row in library.counters() if row["op"] == case.op}
    return out, ", ".join(sorted(rows)) or "none"


def seconds(call: Call, device: str) -> float:
    """Median time of a call on the device, of runs that are queued together."""
    synchronize = getattr(torch, device).synchronize

    def block(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        synchronize()
        return (time.perf_counter() - start) / count

    block(1)
    count = max(1, int(SECONDS / 5 / max(block(1), 1e-6)))
    return statistics.median(block(count) for _ in range(5))


def tried(case: Case, device: str, timed: bool) -> dict[str, Any]:
    """The result of one case: error, tolerance, impl, and seconds where they are asked for."""
    if timed:
        call = case.on(device, LARGE)
        _, impl = served(case, call)
        return {"impl": impl, "seconds": seconds(call, device)}
    expected = case.on("cpu", SMALL)()
    found, impl = served(case, case.on(device, SMALL))
    error, tolerance = compare(case, found, expected)
    return {"impl": impl, "error": error, "tolerance": tolerance}


def main() -> None:
    """See the module."""
    wanted, descriptor = json.loads(sys.argv[1]), int(sys.argv[2])
    device = wanted["device"]
    if package := BROUGHT_BY.get(device):
        importlib.import_module(package)
    by_name = {case.name: case for case in CASES}
    with os.fdopen(descriptor, "w") as results:

        def say(**line: Any) -> None:
            print(json.dumps(line), file=results, flush=True)

        for name in wanted["cases"]:
            say(start=name)
            try:
                say(case=name, **tried(by_name[name], device, wanted["timed"]))
            except NotImplementedError as error:
                say(case=name, refused=str(error))
            except Exception as error:
                # Whatever goes wrong belongs into the report.
                say(case=name, failed=one_line(error))


if __name__ == "__main__":
    main()

"""``mate-plugin doctor --device``: a kind of GPU looked at, tried, timed, and written down."""

from __future__ import annotations

import importlib
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mate_plugin import __version__
from mate_plugin.findings import TOOLKITS, Finding, compiler, one_line, version
from mate_plugin.trial import BROUGHT_BY
from mate_plugin.trial.cases import CASES
from mate_plugin.trial.run import IMPLS, Result, TrialError, trial

# Distributions whose versions a reader of the report wants to know.
PACKAGES = (
    *("torch", "torch_musa", "torchada", "apache-tvm-ffi", "mate", "deep_gemm", "triton"),
    *("tilelang", "vllm", "vllm-musa", "sglang"),
)


@dataclass
class Examination:
    """What is to be done, and what came of it.

    source: a checkout to build from, or None; rebuild: also where there is a library;
    timed: measure as well.
    """

    device: str
    source: Path | None
    rebuild: bool = False
    timed: bool = True
    findings: list[Finding] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    build_log: str = ""

    def run(self) -> Iterator[Finding]:
        """Every finding, each as soon as it is known."""
        for finding in self._steps():
            self.findings.append(finding)
            yield finding

    def write(self, path: Path) -> None:
        """Everything as JSON, for people who want to know how the device fared."""
        told: dict[str, Any] = {
            "mate_plugin": __version__,
            "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "device": self.device,
            "findings": [asdict(finding) for finding in self.findings],
            "results": [result.to_json() for result in self.results],
            "build_log": self.build_log,
        }
        path.write_text(json.dumps(told, indent=1) + "\n")

    def _steps(self) -> Iterator[Finding]:
        from mate_plugin import doctor

        yield from doctor.base()
        found = [f"{name} {known}" for name in PACKAGES if (known := version(name))]
        yield Finding("packages", "ok", ", ".join(found))
        device, compiler = self._device(), self._compiler()
        yield device
        yield compiler
        yield from self._library(compiler.state == "ok")
        if device.state == "wrong":
            return
        for impl in IMPLS[self.device]:
            yield from self._trial(impl)

    def _compiler(self) -> Finding:
        path = compiler(self.device)
        if path is None:
            return Finding("compiler", "note", f"there is no {TOOLKITS[self.device].compiler} here")
        done = subprocess.run([path, "--version"], capture_output=True, text=True)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return Finding("compiler", "ok", f"{path}: {lines[-1] if lines else 'says nothing'}")

    def _library(self, compiles: bool) -> Iterator[Finding]:
        from mate_plugin.kernels import library
        from mate_plugin.trial.build import build

        name, wanted = library.LIBRARIES[self.device], TOOLKITS[self.device].compiler
        absent = library.missing(self.device)
        if absent is None and not self.rebuild:
            yield Finding(name, "ok", library.build_note(self.device))
            return
        if not compiles:
            yield Finding(name, "note", absent or f"cannot be built anew without {wanted}")
            return
        if self.source is None:
            yield Finding(name, "note", f"{absent}, or give the sources with --source")
            return
        yield Finding(name, "ok", f"building from {self.source} (minutes)")
        built = build(self.device, self.source)
        self.build_log = built.log
        if built.path:
            yield Finding(name, "ok", f"built: {built.path}")
        else:
            last = " ".join(built.log.strip().splitlines()[-1:])
            fix = "send the report, which holds all that the compiler said"
            yield Finding(name, "wrong", f"could not be built: {last}", fix)

    def _device(self) -> Finding:
        """The device as torch sees it."""
        import torch

        if package := BROUGHT_BY.get(self.device):
            try:
                importlib.import_module(package)
            except Exception as error:
                # A vendor's package may fail in any way.
                return Finding("device", "wrong", one_line(error), f"install {package}")
        module = getattr(torch, self.device)
        if not module.is_available():
            text = f"torch {torch.__version__} sees no device of the kind {self.device}"
            return Finding("device", "wrong", text, "look at the driver and at torch's build")
        seen = module.get_device_properties(0)
        major, minor = module.get_device_capability(0)
        text = (
            f"{module.device_count()} x {seen.name}, compute capability {major}.{minor},"
            f" {seen.multi_processor_count} multiprocessors, {seen.total_memory >> 20} MiB"
        )
        return Finding("device", "ok", text)

    def _trial(self, impl: str) -> Iterator[Finding]:
        names: list[str] = []
        if impl == "tilelang":
            from mate_plugin.kernels.tilelang import cache

            # It has kernels for few functions; the others are no news of it.
            if reason := cache.why_not(self.device, 0):
                yield Finding(impl, "note", reason)
                return
            names = [case.name for case in CASES if case.op in cache.OPS]
        good, refused = [], Counter[str]()
        try:
            for result in trial(self.device, impl, names):
                self.results.append(result)
                if result.refused:
                    # It says the op first, and then mostly the same.
                    refused[result.refused.partition(": ")[2]] += 1
                    continue
                yield _told(result)
                if result.impl == impl and not result.problem:
                    good.append(result.case)
            for reason, count in refused.items():
                yield Finding(impl, "note", f"{count} cases {reason}")
            if not (self.timed and good):
                return
            for result in trial(self.device, impl, good, timed=True):
                self.results.append(result)
                yield _told(result)
        except TrialError as error:
            yield Finding(impl, "wrong", one_line(error), "send the report")


def _told(result: Result) -> Finding:
    topic, text = result.wanted, f"{result.case}: "
    if result.problem:
        text += result.problem.splitlines()[0]
        return Finding(topic, "wrong", text, "send the report, which holds the rest")
    if result.seconds is not None:
        return Finding(topic, "ok", f"{text}{result.seconds * 1e6:.0f} us at a served model's size")
    text += f"error {result.error:.1e} against the CPU"
    if result.impl != result.wanted:
        return Finding(topic, "note", f"{text}, but served by {result.impl}")
    return Finding(topic, "ok", text)

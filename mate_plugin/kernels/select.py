"""Which implementation serves an op on a device, or the reason why none does."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mate_plugin.kernels import calls, library

# Ops with kernels for Hopper's own instructions beside the portable ones.
_SM90A = frozenset(
    {
        "ragged_m_gemm",
        "masked_gemm",
        "ragged_k_gemm",
        "batched_gemm",
        "paged_mqa_logits",
        "mqa_logits",
        "index_topk",
    }
)
GPU_IMPLS = ("portable", "sm90a", "vendor", "tilelang")
_IMPLS = ("auto", *GPU_IMPLS)
# Devices of implementations that serve one kind alone.
_HOMES = {"sm90a": "cuda", "vendor": "musa"}
# Below these warps are of other sizes or instructions are missing.
_LEAST_CAPABILITY = {"cuda": (8, 0), "musa": (3, 1)}


@dataclass(frozen=True)
class Choice:
    """The implementation of one op on one device; ``impl`` is None where there is none."""

    op: str
    device: str
    impl: str | None
    reason: str


def choose(
    op: str, device: torch.device | str, capability: tuple[int, int] | None = None
) -> Choice:
    """Names the implementation of ``op`` on ``device`` and why it is taken or missing.

    On a GPU a call whose operands the Hopper kernels do not take is served by the portable ones all
    the same; the counters of :mod:`.library` tell. On Moore Threads' the vendor's own package comes
    first, then TileLang, each for the calls that it takes (:mod:`.route`).

    ``capability`` is the GPU's, from callers that know it: torch starts CUDA up to find it, and a
    process that has done so cannot be forked any more.
    """
    # By name: torch knows "musa" only where its package is imported.
    kind, _, index = str(device).partition(":")
    if kind == "cpu":
        isa = library.isa()
        best = library.available_isas()[0]
        reason = "best this machine runs" if isa == best else "forced by MATE_PLUGIN_ISA"
        return Choice(op, kind, isa, reason)
    if kind in _LEAST_CAPABILITY:
        return Choice(op, kind, *_on_gpu(op, kind, int(index) if index else None, capability))
    return Choice(op, kind, None, "no kernels for this kind of device")


def _on_gpu(
    op: str, kind: str, index: int | None, capability: tuple[int, int] | None
) -> tuple[str | None, str]:
    wanted = calls.wanted()
    if wanted not in _IMPLS:
        return None, f"MATE_PLUGIN_IMPL: expected one of {', '.join(_IMPLS)}, got {wanted!r}"
    if (home := _HOMES.get(wanted, kind)) != kind:
        return None, f"MATE_PLUGIN_IMPL={wanted} wants a {home} device, found {kind}"
    theirs = ""
    if (kind == "musa" or wanted == "tilelang") and not _unfit(kind, index, capability):
        found = _packages(op, kind, index, capability, wanted)
        if isinstance(found, tuple):
            return found
        theirs = found and f"{found}; "
    if reason := library.missing(kind):
        return None, theirs + reason
    if not library.module(kind).implements_function(op):
        return None, f"{theirs}this op has no {kind.upper()} kernels in this version"
    if reason := _unfit(kind, index, capability):
        return None, reason
    if kind != "cuda" or op not in _SM90A:
        return "portable", f"{theirs}the only kernels of this op"
    capability = capability or torch.cuda.get_device_capability(index)
    number = ".".join(map(str, capability))
    if wanted == "sm90a" and capability != (9, 0):
        return None, f"MATE_PLUGIN_IMPL=sm90a wants compute capability 9.0, found {number}"
    if wanted not in ("auto", "tilelang"):
        return wanted, "forced by MATE_PLUGIN_IMPL"
    if capability == (9, 0):
        return "sm90a", "compute capability 9.0"
    return "portable", f"compute capability {number}"


def _packages(
    op: str, kind: str, index: int | None, capability: tuple[int, int] | None, wanted: str
) -> tuple[str | None, str] | str:
    """The package that comes before our library, or the end of the search with its reason, or why
    ours comes next."""
    from mate_plugin.kernels.tilelang import cache as tilelang
    from mate_plugin.kernels.vendor import package as vendor

    reasons = []
    if kind == "musa" and wanted in ("auto", "vendor"):
        if not (reason := vendor.obstacle(op)):
            return "vendor", vendor.describe()
        if wanted == "vendor" and op in vendor.FUNCTIONS:
            return None, f"MATE_PLUGIN_IMPL=vendor, but {reason}"
        reasons.append(reason)
    if op in tilelang.OPS and wanted in ("auto", "tilelang"):
        if not (reason := tilelang.why_not(kind, index, capability)):
            return "tilelang", tilelang.describe()
        if wanted == "tilelang":
            return None, f"MATE_PLUGIN_IMPL=tilelang, but {reason}"
        reasons.append(reason)
    return "; ".join(reasons)


def _unfit(kind: str, index: int | None, capability: tuple[int, int] | None) -> str | None:
    """Why no kernels run on a device, whosever they are."""
    if reason := _unseen(kind):
        return reason
    capability = capability or getattr(torch, kind).get_device_capability(index)
    least = _LEAST_CAPABILITY[kind]
    if capability >= least:
        return None
    number = ".".join(map(str, capability))
    return f"expected compute capability {least[0]}.{least[1]} or newer, found {number}"


def _unseen(kind: str) -> str | None:
    """Why torch has no device of this kind."""
    if kind == "musa" and not hasattr(torch, "musa"):
        return "torch_musa, which brings the device, was not imported"
    if getattr(torch, kind).is_available():
        return None
    build = ", which is a build without CUDA" if kind == "cuda" and not torch.version.cuda else ""
    return f"torch {torch.__version__}{build} sees no GPU"


# Ops and devices that were found to be served: a call need not ask again.
_served: set[tuple[str, str, int | None]] = set()


def require(op: str, device: torch.device) -> None:
    """Raises ``NotImplementedError`` with the reason where ``op`` has no kernel on ``device``."""
    if device.type == "cpu":
        return
    if reason := _why_not(op, device.type, device.index):
        raise NotImplementedError(f"{op}: not available on {device.type!r}: {reason}")


@torch.compiler.assume_constant_result
def _why_not(op: str, kind: str, index: int | None) -> str:
    """Empty where there is a kernel."""
    if (op, kind, index) in _served:
        return ""
    choice = choose(op, kind if index is None else f"{kind}:{index}")
    if choice.impl is None:
        return choice.reason
    _served.add((op, kind, index))
    return ""

"""Which kernels run an op where packages may come before our own library.

On Moore Threads' device that is the vendor's ``mate``, then TileLang. On NVIDIA's it is TileLang,
and only where ``MATE_PLUGIN_IMPL=tilelang`` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from mate_plugin.kernels import library
from mate_plugin.kernels.calls import VARIABLE, Calls, wanted
from mate_plugin.kernels.forms import Later


class Provider(Protocol):
    """Kernels of a package for some forms of some ops."""

    calls: Calls

    def serve(self, op: str, arguments: tuple[Any, ...]) -> str:
        """Run a call; or say why not, having done nothing."""
        ...


def route(op: str, kind: str, ours: Callable[..., Any]) -> Callable[..., Any]:
    """The function that eager calls of ``op`` on tensors of a kind of device go to.

    ``ours`` runs the same arguments in our library.
    """
    from mate_plugin.kernels.tilelang import route as tilelang
    from mate_plugin.kernels.vendor import route as vendor

    if kind == "musa" and op == vendor.SIGNAL_UNITS:
        return lambda *arguments: vendor.signal_units(ours, *arguments)
    providers: list[Provider] = []
    if kind == "musa" and op in vendor.OPS:
        providers.append(vendor.PROVIDER)
    if op in tilelang.OPS:
        providers.append(tilelang.PROVIDER)
    return _first_of(op, kind, providers, ours) if providers else ours


def _first_of(
    op: str, kind: str, providers: list[Provider], ours: Callable[..., Any]
) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        refused: list[tuple[Calls, str]] = []
        served = False
        for provider in providers:
            calls = provider.calls
            reason = calls.unasked(kind) or provider.serve(op, arguments)
            if served := not reason:
                break
            if wanted() == calls.impl and not isinstance(reason, Later):
                raise NotImplementedError(f"{op}: {VARIABLE}={calls.impl}, but {reason}")
            refused.append((calls, reason))
        if not served and (missing := library.missing(kind)):
            reasons = dict.fromkeys((*(reason for _, reason in refused), missing))
            raise NotImplementedError(f"{op}: not available on {kind!r}: {'; '.join(reasons)}")
        for calls, reason in refused:
            calls.refuse(op, reason)
        return None if served else ours(*arguments)

    run.__name__ = run.__qualname__ = op
    return run

"""Checks of arguments that are not tensors, and of the contents of index tensors.

Shapes, dtypes, devices and layouts are checked by the contracts of :mod:`.contract`. Reading an
index tensor would stall a device queue: contents are checked only with ``MATE_PLUGIN_CHECK=1``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from mate_plugin.kernels.contract import contract
from mate_plugin.kernels.contract_errors import ceil_div, describe

__all__ = [
    "BACKENDS",
    "GEMM_MODES",
    "ceil_div",
    "check_counts",
    "check_ends",
    "check_expert_ids",
    "choice",
    "contract",
    "describe",
    "granularity",
    "index_checks_enabled",
    "integer",
    "pair",
    "set_index_checks",
]

T = TypeVar("T")

# Published names and the numbers that the compiled core knows them by; None takes the default.
GEMM_MODES: dict[str | None, int] = {None: 0, "per_token": 0, "psum_expert": 1, "per_expert": 2}
# Libraries of the musa device. Accepted everywhere, so that callers need no change.
BACKENDS: dict[str | None, str] = {name: name for name in ("auto", "mudnn", "mubin")}


def _means_on(text: str) -> bool:
    return text.strip().lower() not in ("", "0", "false", "no", "off")


_index_checks = _means_on(os.environ.get("MATE_PLUGIN_CHECK", ""))


def index_checks_enabled() -> bool:
    """Whether the contents of index tensors are checked; never while torch.compile traces."""
    return _index_checks and not torch.compiler.is_compiling()


def set_index_checks(enabled: bool) -> bool:
    """Switch the checks of index contents on or off; returns the former state."""
    global _index_checks
    before, _index_checks = _index_checks, enabled
    return before


def choice(name: str, value: Any, table: Mapping[str | None, T]) -> T:
    """The entry of ``table`` for ``value``; ValueError lists the names otherwise."""
    if (value is None or isinstance(value, str)) and value in table:
        return table[value]
    names = ", ".join(repr(key) for key in table)
    kind = ValueError if value is None or isinstance(value, str) else TypeError
    raise kind(f"{name}: expected one of {names}, got {describe(value)}")


def granularity(
    value: Any,
    table: Mapping[tuple[int, int, int], T],
    default: tuple[int, int, int],
    name: str = "scale_granularity_mnk",
) -> T:
    """The entry of ``table`` for a granularity over (m, n, k); None takes ``default``."""
    if value is None:
        return table[default]
    if not isinstance(value, (tuple, list)) or not all(_is_int(part) for part in value):
        raise TypeError(f"{name}: expected three integers or None, got {describe(value)}")
    key = tuple(value)
    if key not in table:
        names = ", ".join(str(entry) for entry in table)
        raise ValueError(f"{name}: expected one of {names}, got {describe(value)}")
    return table[key]  # type: ignore[index]


def integer(name: str, value: Any, least: int, optional: bool = True) -> None:
    """Raise unless ``value`` is an integer of at least ``least`` (or None where optional)."""
    if value is None and optional:
        return
    if not _is_int(value):
        wanted = "an integer or None" if optional else "an integer"
        raise TypeError(f"{name}: expected {wanted}, got {describe(value)}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {int(value)}")


def pair(name: str, value: Any) -> tuple[Any, Any]:
    """Unpack a (tensor, scale) tuple."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name}: expected a tuple (tensor, scale), got {describe(value)}")
    if len(value) != 2:
        raise ValueError(f"{name}: expected a tuple (tensor, scale), got {len(value)} items")
    return value[0], value[1]


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def check_expert_ids(name: str, ids: torch.Tensor, num_experts: int) -> None:
    """Each row names an expert or -1."""
    bad = ((ids < -1) | (ids >= num_experts)).nonzero()
    if bad.numel():
        row = int(bad[0])
        raise ValueError(
            f"{name}: expected experts in [-1, {num_experts}), got {int(ids[row])} at row {row}"
        )


def check_ends(name: str, ends: torch.Tensor, num_rows: int) -> None:
    """Running end offsets do not fall and stay within the rows."""
    values = ends.tolist()
    for expert, (before, end) in enumerate(zip([0, *values[:-1]], values, strict=True)):
        if end < before or end > num_rows:
            raise ValueError(
                f"{name}: expected end offsets from 0 to {num_rows} that do not fall,"
                f" got {end} after {before} at expert {expert}"
            )


def check_counts(
    name: str,
    counts: torch.Tensor,
    most: int,
    *,
    each: bool = False,
    block: int = 1,
    what: str = "rows",
) -> None:
    """Counts are not negative; their sum in ``block``s (or each of them) is at most ``most``."""
    total = 0
    for expert, count in enumerate(counts.tolist()):
        if count < 0 or (each and count > most):
            wanted = f"a count from 0 to {most}" if each else "no negative count"
            raise ValueError(f"{name}: expected {wanted}, got {count} at expert {expert}")
        total += ceil_div(count, block)
    if not each and total > most:
        raise ValueError(f"{name}: expected at most {most} {what} in all, got {total}")

"""The k largest values of rows, over valid prefixes or ranges."""

from __future__ import annotations

import torch

from mate_plugin.kernels import library
from mate_plugin.kernels.checks import contract, index_checks_enabled, integer

_top_k = library.define(
    "top_k",
    "(Tensor logits, Tensor lengths, Tensor? starts, Tensor(a!) out, int num_threads, int stream)"
    " -> ()",
)
_CHECK = contract(
    "top_k",
    "logits: f32 [R, C] rows",
    "lengths: i32 [R]",
    "starts: i32 [R] optional",
    "out: i32 [R, K] out optional",
    where={"K": "k"},
)


def top_k(
    logits: torch.Tensor,
    lengths: torch.Tensor,
    k: int,
    *,
    starts: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    num_mp: int | None = None,
) -> torch.Tensor:
    """Indices of the k largest values of each row among its valid columns.

    Row r is valid in columns ``starts[r] <= c < lengths[r]``. The largest are the first by value,
    descending, and then by column, ascending; NaN is larger than any number and equal to NaN,
    zeros are equal, -inf is a value like others. The outcome is the same for any number of threads.

    A random sample gives a value that slightly more than k reach (Floyd and Rivest, SELECT, 1975);
    a radix selection among those is exact.

    Args:
        logits: float32 (R, C), C contiguous. Rows may have any stride.
        lengths: int32 (R,), the column past the last valid one. Without index checks it is cut to
            the columns there are.
        k: how many to take, >= 1.
        starts: int32 (R,), the first valid column, cut likewise; None is 0 for every row.
        out: int32 (R, k), any row stride; written and returned.
        num_mp: at most so many threads; None takes all.

    Returns:
        int32 (R, k): ``c - starts[r]`` of the columns taken, ascending, and then -1 where a row has
        fewer than k valid columns.

    Raises:
        TypeError, ValueError: an argument is not as described; with index checks
            (``MATE_PLUGIN_CHECK=1``) also ranges that are not within the columns.
        NotImplementedError: there are no kernels for the device.
    """
    integer("k", k, 1, optional=False)
    integer("num_mp", num_mp, 1)
    _CHECK(logits, lengths, starts, out, k)
    if index_checks_enabled():
        _check_columns(lengths, starts, logits.shape[1])
    if out is None:
        out = torch.empty((logits.shape[0], k), dtype=torch.int32, device=logits.device)
    _top_k(logits, lengths, starts, out, library.threads(num_mp, logits), library.stream(logits))
    return out


def _check_columns(lengths: torch.Tensor, starts: torch.Tensor | None, columns: int) -> None:
    firsts = [0] * lengths.shape[0] if starts is None else starts.tolist()
    for row, (first, end) in enumerate(zip(firsts, lengths.tolist(), strict=True)):
        if end < 0 or end > columns:
            raise ValueError(
                f"lengths: expected a column from 0 to {columns}, got {end} at row {row}"
            )
        if first < 0 or first > columns:
            raise ValueError(
                f"starts: expected a column from 0 to {columns}, got {first} at row {row}"
            )

"""Rows of tokens to rows sorted by expert, and back with the router's weights."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mate_plugin.kernels import library
from mate_plugin.kernels.checks import (
    check_expert_ids,
    contract,
    index_checks_enabled,
    integer,
)

_route = library.define(
    "moe_route",
    "(Tensor topk_ids, Tensor? expert_map, Tensor(a!) row_of, Tensor(b!) counts, Tensor(c!) ends,"
    " Tensor(d!) expert_of_row, Tensor(e!) row_of_slot, int alignment, int capacity,"
    " int num_threads, int stream) -> ()",
)
_permute = library.define(
    "moe_permute",
    "(Tensor hidden, Tensor row_of, Tensor? row_of_slot, Tensor? weights, Tensor(a!) rows,"
    " int topk, int tag, int weights_tag, int num_threads, int stream) -> ()",
)
_unpermute = library.define(
    "moe_unpermute",
    "(Tensor rows, Tensor row_of, Tensor? row_of_slot, Tensor? weights, Tensor(a!) out, int topk,"
    " int tag, int out_tag, int weights_tag, int num_threads, int stream) -> ()",
)

_CHECK_ROUTE = contract("moe_route", "topk_ids: i32|i64 [T, topk] any")
_CHECK_MAP = contract(
    "moe_route", "topk_ids: i32|i64 [T, topk] any", "expert_map: i32 [num_experts] any"
)
_ROW_OF_SLOT = "routing.row_of_slot: i32 [S] contiguous optional"
_CHECK_PERMUTE = contract(
    "moe_permute",
    "hidden: bf16|fp16|f32|fp8 [T, H] rows",
    "routing.row_of: i32 [R] any",
    "out: bf16|fp16|f32|fp8 [R, H] out optional",
    _ROW_OF_SLOT,
    where={"S": "T * topk"},
)
_CHECK_PERMUTE_WEIGHTED = contract(
    "moe_permute",
    "hidden: bf16|fp16|f32 [T, H] rows",
    "routing.row_of: i32 [R] any",
    "topk_weights: f32|bf16|fp16 [T, J] any",
    "out: bf16|fp16|f32 [R, H] out optional",
    _ROW_OF_SLOT,
    where={"J": "topk", "S": "T * topk"},
)
_CHECK_UNPERMUTE = contract(
    "moe_unpermute",
    "y: bf16|fp16|f32 [R, H] rows",
    "routing.row_of: i32 [R] any",
    "out: bf16|fp16|f32 [T, H] out",
    _ROW_OF_SLOT,
    where={"S": "T * topk"},
)
_CHECK_UNPERMUTE_WEIGHTED = contract(
    "moe_unpermute",
    "y: bf16|fp16|f32 [R, H] rows",
    "routing.row_of: i32 [R] any",
    "out: bf16|fp16|f32 [T, H] out",
    "topk_weights: f32|bf16|fp16 [T, topk] any",
)


class Routing(NamedTuple):
    """Where the rows of each expert lie and which (token, slot) pair each of them serves.

    row_of: int32 (R,), flat index ``token * topk + slot`` of each row, -1 for rows that serve none.
    counts: int32 (E,), rows of each local expert.
    ends: int32 (E,), one past the last row of each expert.
    expert_of_row: int32 (R,), local expert of each row or -1.
    topk: slots per token, needed to take rows back without weights.
    row_of_slot: int32 (T * topk,), contiguous: the row of each pair, or -1. It says what ``row_of``
        says, which spares a GPU the search; None where only that is known.
    """

    row_of: torch.Tensor
    counts: torch.Tensor
    ends: torch.Tensor | None = None
    expert_of_row: torch.Tensor | None = None
    topk: int | None = None
    row_of_slot: torch.Tensor | None = None


def route(
    topk_ids: torch.Tensor,
    num_local_experts: int,
    expert_map: torch.Tensor | None = None,
    *,
    alignment: int = 1,
    capacity: int | None = None,
) -> Routing:
    """Sort (token, slot) pairs by local expert: a counting sort, in token order within an expert.

    The number of rows R follows from shapes alone. What the grouped GEMMs want to know:
    ``counts`` for "per_expert" (alignment 1) and "masked" (with a capacity), ``ends`` for
    "psum_expert", ``expert_of_row`` for "per_token".

    Args:
        topk_ids: int32 or int64 (T, topk), any strides. Ids below 0, past the last expert, or
            mapped to -1 belong to no local expert and get no row.
        num_local_experts: E.
        expert_map: int32 (num_experts,), the local index of each global expert or -1; None where
            ids are local already.
        alignment: the rows of each expert start at a multiple of this.
        capacity: give every expert exactly this many rows, used from the front: ``row_of`` is then
            (E * capacity,) and rows unflatten to (E, capacity, H). Excludes an alignment.

    Returns:
        A :class:`Routing` with every field.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong shape or value, or an expert with more rows than ``capacity``. With
            ``MATE_PLUGIN_CHECK=1`` also a local index past E in ``expert_map``.
        NotImplementedError: there are no kernels for the device.
    """
    integer("num_local_experts", num_local_experts, 0, optional=False)
    integer("alignment", alignment, 1, optional=False)
    integer("capacity", capacity, 1)
    if capacity is not None and alignment != 1:
        raise ValueError(f"alignment: expected 1 beside a capacity, got {alignment}")
    if expert_map is None:
        _CHECK_ROUTE(topk_ids)
    else:
        _CHECK_MAP(topk_ids, expert_map)
        if index_checks_enabled():
            check_expert_ids("expert_map", expert_map, num_local_experts)
    num_slots = topk_ids.shape[0] * topk_ids.shape[1]
    if capacity is None:
        used = min(num_slots, num_local_experts)
        # No more than these; the rows of all experts are whole multiples.
        num_rows = (num_slots + used * (alignment - 1)) // alignment * alignment
    else:
        num_rows = num_local_experts * capacity
    if not torch.compiler.is_compiling() and max(num_slots, num_rows) >= 2**31:
        raise ValueError(f"topk_ids: expected fewer than 2**31 rows, got {num_rows}")
    row_of, counts, ends, expert_of_row, row_of_slot = (
        torch.empty(size, dtype=torch.int32, device=topk_ids.device)
        for size in (num_rows, num_local_experts, num_local_experts, num_rows, num_slots)
    )
    _route(
        topk_ids,
        expert_map,
        row_of,
        counts,
        ends,
        expert_of_row,
        row_of_slot,
        alignment,
        capacity or 0,
        library.threads(None, topk_ids),
        library.stream(topk_ids),
    )
    return Routing(row_of, counts, ends, expert_of_row, topk_ids.shape[1], row_of_slot)


def permute(
    hidden: torch.Tensor,
    routing: Routing,
    topk: int,
    topk_weights: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Copy each token's row to the rows of the experts it chose.

    Args:
        hidden: (T, H), H contiguous, rows of any stride: bfloat16, float16, float32 or FP8. Scales
            of quantised rows move the same way, in a call of their own.
        routing: from :func:`route`, or made by hand from ``row_of`` (R,) and any ``counts``.
        topk: slots per token.
        topk_weights: float32, bfloat16 or float16 (T, topk), any strides: each row is multiplied by
            its weight in float32 and rounded once. None copies. Not for FP8 rows.
        out: (R, H) of the same dtype, H contiguous; None allocates it.

    Returns:
        ``out``. Rows that serve no pair are left unwritten.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong shape or layout. With ``MATE_PLUGIN_CHECK=1`` also a ``row_of`` that
            leaves the slots or names one twice, and a ``row_of_slot`` that contradicts it.
        NotImplementedError: there are no kernels for the device.
    """
    integer("topk", topk, 1, optional=False)
    if routing.topk is not None and topk != routing.topk:
        raise ValueError(f"topk: expected {routing.topk}, as the routing has it, got {topk}")
    if topk_weights is None:
        _CHECK_PERMUTE(hidden, routing.row_of, out, routing.row_of_slot, topk)
    else:
        _CHECK_PERMUTE_WEIGHTED(
            hidden, routing.row_of, topk_weights, out, routing.row_of_slot, topk
        )
    if out is None:
        shape = (routing.row_of.shape[0], hidden.shape[1])
        out = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
    elif out.dtype != hidden.dtype:
        raise TypeError(f"out: expected dtype {hidden.dtype}, that of hidden, got {out.dtype}")
    if index_checks_enabled():
        _check_row_of(routing, hidden.shape[0] * topk)
    _permute(
        hidden,
        routing.row_of,
        routing.row_of_slot,
        topk_weights,
        out,
        topk,
        library.tag(hidden.dtype),
        _weights_tag(topk_weights),
        library.threads(None, hidden),
        library.stream(hidden),
    )
    return out


def unpermute(
    y: torch.Tensor,
    routing: Routing,
    topk_weights: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """Weighted sum of the rows of each token, ``out[t] = sum_j w[t, j] * y[row of (t, j)]``.

    Summed in float32 in the order of j, so that equal input gives equal bits, and
    rounded once. Pairs without a row add nothing; a token without any gives zeros.

    Args:
        y: (R, H) bfloat16, float16 or float32, H contiguous. Rows of no pair are not read.
        routing: as for :func:`permute`; without weights it must carry ``topk``.
        topk_weights: float32, bfloat16 or float16 (T, topk), any strides; None is a plain sum.
        out: (T, H) bfloat16, float16 or float32, H contiguous; every row is written.

    Returns:
        ``out``.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong shape or layout, or ``out`` shares memory with another argument. Nothing
            is written.
        NotImplementedError: there are no kernels for the device.
    """
    topk = routing.topk
    if topk_weights is None:
        if topk is None:
            raise ValueError("routing.topk: expected a number where there are no weights, got None")
        _CHECK_UNPERMUTE(y, routing.row_of, out, routing.row_of_slot, topk)
    else:
        _CHECK_UNPERMUTE_WEIGHTED(y, routing.row_of, out, topk_weights)
        if topk is not None and topk != topk_weights.shape[1]:
            raise ValueError(
                f"topk_weights: expected {topk} weights per token, as the routing has them,"
                f" got {topk_weights.shape[1]}"
            )
        topk = topk_weights.shape[1]
        _CHECK_UNPERMUTE(y, routing.row_of, out, routing.row_of_slot, topk)
    if index_checks_enabled():
        _check_row_of(routing, out.shape[0] * topk)
    _unpermute(
        y,
        routing.row_of,
        routing.row_of_slot,
        topk_weights,
        out,
        topk,
        library.tag(y.dtype),
        library.tag(out.dtype),
        _weights_tag(topk_weights),
        library.threads(None, y),
        library.stream(y),
    )
    return out


def _check_row_of(routing: Routing, num_slots: int) -> None:
    row_of_slot = [-1] * num_slots
    for row, slot in enumerate(routing.row_of.tolist()):
        if slot < -1 or slot >= num_slots or (slot >= 0 and row_of_slot[slot] >= 0):
            fault = " again" if 0 <= slot < num_slots else ""
            raise ValueError(
                f"routing.row_of: expected -1 or one of {num_slots} slots, each at most once,"
                f" got {slot}{fault} at row {row}"
            )
        if slot >= 0:
            row_of_slot[slot] = row
    if routing.row_of_slot is None:
        return
    for slot, (wanted, row) in enumerate(
        zip(row_of_slot, routing.row_of_slot.tolist(), strict=True)
    ):
        if row != wanted:
            raise ValueError(
                f"routing.row_of_slot: expected {wanted}, as routing.row_of has it, got {row}"
                f" at slot {slot}"
            )


def _weights_tag(weights: torch.Tensor | None) -> int:
    return library.tag(torch.float32 if weights is None else weights.dtype)

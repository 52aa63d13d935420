"""The MoE layer without an engine: route, permute, GEMM, SwiGLU, GEMM, weighted sum.

Two forms. *Standard*: tokens ``[T, H]`` with the experts each one chose. *Batched*: tokens already
sorted into ``[E, Mx, H]`` with a count per expert, as expert-parallel engines hand them over.

A whole layer is one torch op, so that torch.compile sees one opaque call and an eager call goes
straight through.
"""

from __future__ import annotations

import torch

from mate_plugin import report
from mate_plugin.kernels import gemm, moe, quant
from mate_plugin.layers.plan import ExpertsPlan, check_block, from_key, plan_experts

GATE, UP = 0, 1


class Experts:
    """Experts of one MoE layer; everything that can be chosen ahead is chosen here, once.

    Args:
        w13: ``[E, 2I, H]`` e4m3 or e5m2, the gate rows above the up rows.
        w13_scale: float32 ``[E, 2 * ceil(I / n), ceil(H / k)]`` for blocks of ``n x k``: gate and
            up each start a block of their own.
        w2: ``[E, H, I]``; w2_scale: float32 ``[E, ceil(H / n), ceil(I / k)]``.
        block: ``(n, k)`` of one scale.
        activation: "auto", "bf16" (activations stay as they come) or "fp8" (rounded per token and
            ``k`` columns before each GEMM).
        gemm_mode: "auto", "per_token", "psum_expert", "per_expert" or "masked".
        alignment_m: 1, 128, 256 or None (packed).
        limit: clamp of SwiGLU or None.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
        NotImplementedError: there are no kernels for the device.
    """

    def __init__(
        self,
        w13: torch.Tensor,
        w13_scale: torch.Tensor,
        w2: torch.Tensor,
        w2_scale: torch.Tensor,
        block: tuple[int, int] = (128, 128),
        activation: str = "auto",
        gemm_mode: str = "auto",
        alignment_m: int | None = None,
        limit: float | None = None,
    ) -> None:
        check_weights(w13, w13_scale, w2, w2_scale, block)
        self.plan = plan_experts(w13.device, block, activation, gemm_mode, alignment_m, limit)
        self.weights = (w13, w13_scale, w2, w2_scale)
        report.layer_built("moe", shape_name(w2), self.plan.describe())

    def apply(
        self,
        hidden: torch.Tensor,
        topk_weights: torch.Tensor | None,
        topk_ids: torch.Tensor,
        out: torch.Tensor | None = None,
        expert_map: torch.Tensor | None = None,
        apply_router_weight_on_input: bool = False,
    ) -> torch.Tensor:
        """Write the layer's output for ``hidden[T, H]`` (bf16 or fp16) to ``out[T, H]``, return it.

        Args:
            topk_weights: ``[T, topk]`` router weights, or None for a plain sum.
            topk_ids: ``[T, topk]`` int32 or int64; a negative id is no expert.
            expert_map: int32 ``[num_experts]``, the local index of each global expert or -1.
            apply_router_weight_on_input: scale the rows that enter the experts instead of those
                that leave them.
        """
        out = torch.empty_like(hidden) if out is None else out
        return apply_experts(
            self.plan,
            hidden,
            topk_weights,
            topk_ids,
            *self.weights,
            out=out,
            expert_map=expert_map,
            apply_router_weight_on_input=apply_router_weight_on_input,
        )

    def apply_batched(
        self,
        hidden: torch.Tensor,
        counts: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Put rows ``[:counts[e]]`` of ``hidden[E, Mx, H]`` through expert e; others stay."""
        out = torch.empty_like(hidden) if out is None else out
        return apply_batched_experts(self.plan, hidden, counts, *self.weights, out=out)


def check_weights(
    w13: torch.Tensor,
    w13_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    block: tuple[int, int],
) -> None:
    """Raise ValueError unless the four tensors fit together (shapes as in :class:`Experts`)."""
    check_block(block)
    n, k = block
    if w2.dim() != 3:
        raise ValueError(f"w2: expected [E, H, I], got {list(w2.shape)}")
    experts, hidden, inner = w2.shape
    expected = {
        "w13": (w13, (experts, 2 * inner, hidden)),
        "w13_scale": (w13_scale, (experts, 2 * _blocks(inner, n), _blocks(hidden, k))),
        "w2_scale": (w2_scale, (experts, _blocks(hidden, n), _blocks(inner, k))),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name}: expected {list(shape)} beside w2 {list(w2.shape)} in {n}x{k} blocks, "
                f"got {list(tensor.shape)}"
            )


def shape_name(w2: torch.Tensor) -> str:
    """Name under which a layer's calls are counted: experts x hidden x intermediate size."""
    return f"{w2.shape[0]}x{w2.shape[1]}x{w2.shape[2]}"


def apply_experts(
    plan: ExpertsPlan,
    hidden: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
    w13: torch.Tensor,
    w13_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    *,
    out: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    apply_router_weight_on_input: bool = False,
) -> torch.Tensor:
    """:meth:`Experts.apply` for callers that keep plan and weights themselves."""
    if apply_router_weight_on_input and topk_weights is None:
        raise ValueError("topk_weights: expected [T, topk] to apply to the input, got None")
    run = torch.ops.mate_plugin.experts if torch.compiler.is_compiling() else _experts
    run(
        hidden,
        topk_weights,
        topk_ids,
        w13,
        w13_scale,
        w2,
        w2_scale,
        expert_map,
        out,
        apply_router_weight_on_input,
        plan.key,
    )
    return out


def apply_batched_experts(
    plan: ExpertsPlan,
    hidden: torch.Tensor,
    counts: torch.Tensor,
    w13: torch.Tensor,
    w13_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    """:meth:`Experts.apply_batched` for callers that keep plan and weights themselves."""
    run = torch.ops.mate_plugin.batched_experts if torch.compiler.is_compiling() else _batched
    run(hidden, counts, w13, w13_scale, w2, w2_scale, out, plan.key)
    return out


def _experts(
    hidden: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
    w13: torch.Tensor,
    w13_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    expert_map: torch.Tensor | None,
    out: torch.Tensor,
    weight_on_input: bool,
    key: str,
) -> None:
    plan = from_key(key)
    report.layer_called("moe", shape_name(w2), plan.describe())
    if hidden.shape[0] == 0:
        return
    routing, info = _lay_out(plan, topk_ids, w13.shape[0], expert_map)
    before, after = (topk_weights, None) if weight_on_input else (None, topk_weights)
    entering = moe.permute(hidden, routing, topk_ids.shape[1], before)
    grouped = _Grouped(plan, info, w13.shape[0])
    inner = _gate_up(plan, grouped, entering, w13, w13_scale)
    leaving = grouped(_silu(plan, inner, hidden.dtype), w2, w2_scale, inner.dtype)
    moe.unpermute(leaving, routing, after, out)


def _batched(
    hidden: torch.Tensor,
    counts: torch.Tensor,
    w13: torch.Tensor,
    w13_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    out: torch.Tensor,
    key: str,
) -> None:
    plan = from_key(key)
    report.layer_called("moe", shape_name(w2), plan.describe())
    experts, most, size = hidden.shape
    if most == 0:
        return
    masked = _Grouped(plan, counts, experts, masked=True)
    inner = _gate_up(plan, masked, hidden.reshape(-1, size), w13, w13_scale)
    masked(_silu(plan, inner, hidden.dtype), w2, w2_scale, hidden.dtype, out=out)


class _Grouped:
    """One grouped GEMM over the rows of a layout, in the plan's numerics.

    ``info`` is what the layout's GEMM wants to know: counts, end offsets or an expert per row.
    """

    def __init__(
        self, plan: ExpertsPlan, info: torch.Tensor, num_experts: int, masked: bool = False
    ) -> None:
        self.plan = plan
        self.info = info
        self.num_experts = num_experts
        self.masked = masked or plan.gemm_mode == "masked"

    def __call__(
        self,
        rows: _Rows,
        weight: torch.Tensor,
        scale: torch.Tensor,
        dtype: torch.dtype,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``rows[R, K]`` times each row's expert of ``weight[E, N, K]``, as ``[R, N]``."""
        if out is None:
            out = torch.empty(_count(rows), weight.shape[1], dtype=dtype, device=weight.device)
        self.into(rows, weight, scale, out)
        return out

    def into(
        self, rows: _Rows, weight: torch.Tensor, scale: torch.Tensor, out: torch.Tensor
    ) -> None:
        if self.masked:
            rows, out = self._by_expert(rows), self._by_expert(out)
            if isinstance(rows, tuple):
                gemm.masked_moe_gemm_8bit(rows, (weight, scale), self.info, out)
            else:
                gemm.masked_moe_gemm_w8a16(rows, (weight, scale), self.info, out)
            return
        mode, alignment = self.plan.gemm_mode, self.plan.alignment_m
        if isinstance(rows, tuple):
            gemm.ragged_m_moe_gemm_8bit(
                rows, (weight, scale), self.info, out, gemm_mode=mode, alignment_m=alignment
            )
        else:
            gemm.ragged_m_moe_gemm_w8a16(
                rows, (weight, scale), self.info, out, gemm_mode=mode, alignment_m=alignment
            )

    def _by_expert(self, rows: _Rows) -> _Rows:
        if isinstance(rows, tuple):
            return tuple(self._by_expert(part) for part in rows)  # type: ignore[return-value]
        return rows.unflatten(0, (self.num_experts, -1)) if rows.dim() == 2 else rows


# 16-bit rows, or FP8 rows with their scales.
_Rows = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def _count(rows: _Rows) -> int:
    return (rows[0] if isinstance(rows, tuple) else rows).shape[0]


def _gate_up(
    plan: ExpertsPlan,
    grouped: _Grouped,
    entering: torch.Tensor,
    w13: torch.Tensor,
    w13_scale: torch.Tensor,
) -> torch.Tensor:
    """Gate and up of each row, ``[R, 2I]``."""
    width = w13.shape[1] // 2
    rows: _Rows = entering
    if plan.activation == "fp8":
        rows = quant.per_token_group_quant_fp8(entering, plan.block[1])
    # GPUs round what leaves a GEMM; where activations are kept, sums stay in float32 to the end.
    dtype = entering.dtype if plan.activation == "fp8" else torch.float32
    if width % plan.block[0] == 0:
        return grouped(rows, w13, w13_scale, dtype)
    # Gate and up each end in a partial block, so that their scales form two grids.
    inner = torch.empty(entering.shape[0], 2 * width, dtype=dtype, device=entering.device)
    blocks = w13_scale.shape[1] // 2
    for half in (GATE, UP):
        columns = slice(half * width, (half + 1) * width)
        scale = w13_scale[:, half * blocks : (half + 1) * blocks]
        grouped.into(rows, w13[:, columns], scale, inner[:, columns])
    return inner


def _silu(plan: ExpertsPlan, inner: torch.Tensor, dtype: torch.dtype) -> _Rows:
    if plan.activation == "fp8":
        # GPUs run two kernels here, with a 16-bit product between them.
        return quant.silu_and_mul_quant_fp8(
            inner, plan.block[1], limit=plan.limit, round_first=True
        )
    return quant.silu_and_mul(inner, limit=plan.limit).to(dtype)


def _lay_out(
    plan: ExpertsPlan,
    topk_ids: torch.Tensor,
    num_experts: int,
    expert_map: torch.Tensor | None,
) -> tuple[moe.Routing, torch.Tensor]:
    """The rows in the plan's layout, and what the grouped GEMM wants to know about them."""
    routing = moe.route(topk_ids, num_experts, expert_map, alignment=plan.alignment_m)
    if plan.gemm_mode == "psum_expert":
        return routing, routing.ends
    if plan.gemm_mode == "per_token":
        return routing, routing.expert_of_row
    if plan.gemm_mode == "masked":
        # Counts may be read on a CPU: the busiest expert, and no worst case, sets the memory taken.
        capacity = max(int(routing.counts.max()), 1)
        routing = moe.route(topk_ids, num_experts, expert_map, capacity=capacity)
    return routing, routing.counts


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


_library = torch.library.Library("mate_plugin", "FRAGMENT")
_library.define(
    "experts(Tensor hidden, Tensor? topk_weights, Tensor topk_ids, Tensor w13, Tensor w13_scale,"
    " Tensor w2, Tensor w2_scale, Tensor? expert_map, Tensor(a!) out, bool weight_on_input,"
    " str key) -> ()"
)
_library.define(
    "batched_experts(Tensor hidden, Tensor counts, Tensor w13, Tensor w13_scale, Tensor w2,"
    " Tensor w2_scale, Tensor(a!) out, str key) -> ()"
)
for _name, _function in {"experts": _experts, "batched_experts": _batched}.items():
    _library.impl(_name, _function, "CPU")
    torch.library.register_fake(f"mate_plugin::{_name}", lambda *_: None, lib=_library)

"""The MoE layer without an engine: route, permute, GEMM, SwiGLU, GEMM, weighted sum.

Two forms. *Standard*: tokens ``[T, H]`` with the experts each one chose. *Batched*: tokens already
sorted into ``[E, Mx, H]`` with a count per expert, as expert-parallel engines hand them over.

A whole layer is one torch op, so that torch.compile sees one opaque call and an eager call goes
straight through.
"""

from __future__ import annotations

import torch

from mate_plugin import report
from mate_plugin.kernels import moe
from mate_plugin.layers.grouped import GroupedGemm, gate_up, lay_out, swiglu
from mate_plugin.layers.plan import ExpertsPlan, check_block, from_key, plan_experts


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
    routing, info = lay_out(plan, topk_ids, w13.shape[0], expert_map)
    before, after = (topk_weights, None) if weight_on_input else (None, topk_weights)
    entering = moe.permute(hidden, routing, topk_ids.shape[1], before)
    grouped = GroupedGemm(plan, info, w13.shape[0])
    inner = gate_up(plan, grouped, entering, w13, w13_scale)
    leaving = grouped(swiglu(plan, inner, hidden.dtype), w2, w2_scale, inner.dtype)
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
    masked = GroupedGemm(plan, counts, experts, masked=True)
    inner = gate_up(plan, masked, hidden.reshape(-1, size), w13, w13_scale)
    masked.into(swiglu(plan, inner, hidden.dtype), w2, w2_scale, out)


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

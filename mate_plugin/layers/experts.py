"""The MoE layer without an engine: route, permute, GEMM, SwiGLU, GEMM, weighted sum.

Two forms. *Standard*: tokens ``[T, H]`` with the experts each one chose. *Batched*: tokens already
sorted into ``[E, Mx, H]`` with a count per expert, as expert-parallel engines hand them over.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from mate_plugin import report
from mate_plugin.layers.experts_ops import Overlap, apply_batched_experts, apply_experts
from mate_plugin.layers.grouped import Rows
from mate_plugin.layers.plan import plan_experts
from mate_plugin.layers.weights import check_weights, pack_in_place, packs, shape_name, weight_bits


class Experts:
    """Experts of one MoE layer; everything that can be chosen ahead is chosen here, once.

    Args:
        w13: ``[E, 2I, H]`` e4m3 or e5m2, the gate rows above the up rows; or bfloat16 or float16.
        w13_scale: float32 ``[E, 2 * ceil(I / n), ceil(H / k)]`` for blocks of ``n x k``: gate and
            up each start a block of their own. None beside 16-bit weights.
        w2: ``[E, H, I]`` FP8, or of the 16-bit dtype of ``w13``.
        w2_scale: float32 ``[E, ceil(H / n), ceil(I / k)]``, or None as ``w13_scale``.
        block: ``(n, k)`` of one scale.
        activation: "auto", "bf16" (activations stay as they come) or "fp8" (rounded per token and
            ``k`` columns before each GEMM; only with FP8 weights).
        gemm_mode: "auto", "per_token", "psum_expert", "per_expert" or "masked".
        alignment_m: 1, 128, 256 or None (packed).
        limit: clamp of SwiGLU or None.
        pack: for tokens in bfloat16, rearrange the memory of ``w13`` and ``w2`` where the kernels
            in use are faster for it; they can then be read as rows no more.

    What leaves a GEMM stays in float32 up to the last rounding where FP8 weights meet 16-bit
    activations. In the other forms it is rounded to 16 bits, as their kernels write nothing else.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
        NotImplementedError: there are no kernels for the device.
    """

    def __init__(
        self,
        w13: torch.Tensor,
        w13_scale: torch.Tensor | None,
        w2: torch.Tensor,
        w2_scale: torch.Tensor | None,
        block: tuple[int, int] = (128, 128),
        activation: str = "auto",
        gemm_mode: str = "auto",
        alignment_m: int | None = None,
        limit: float | None = None,
        pack: bool = False,
    ) -> None:
        check_weights(w13, w13_scale, w2, w2_scale, block)
        bits = weight_bits(w13_scale)
        self.plan = plan_experts(w13.device, block, activation, gemm_mode, alignment_m, limit, bits)
        if pack and packs(w13, w2, torch.bfloat16):
            pack_in_place(w13, w2)
            self.plan = replace(self.plan, packed=True)
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
        routed_scaling_factor: float | None = None,
        no_combine: bool = False,
        keep_router_weight: bool = False,
    ) -> torch.Tensor:
        """Write the layer's output for ``hidden[T, H]`` (bf16 or fp16) to ``out[T, H]``, return it.

        The result of a token does not depend on the other tokens.

        Args:
            hidden: of the dtype of the weights where those are of 16 bits.
            topk_weights: ``[T, topk]`` router weights, or None for a plain sum.
            topk_ids: ``[T, topk]`` int32 or int64; a negative id is no expert.
            expert_map: int32 ``[num_experts]``, the local index of each global expert or -1.
            apply_router_weight_on_input: scale the rows that enter the experts instead of those
                that leave them.
            routed_scaling_factor: what leaves the layer is multiplied with it in float32, before
                the only rounding of the sum.
            no_combine: give the row of each chosen expert by itself, ``out[T, topk, H]``
                (contiguous), zeros for no or no local expert. Rows that leave carry no router
                weight, but the factor.
            keep_router_weight: beside ``no_combine``, multiply each row with its router weight
                (unless the input has been).

        Raises:
            ValueError, TypeError: an argument is wrong or contradicts another. Nothing is written.
        """
        if out is None:
            pairs = topk_ids.shape if no_combine else topk_ids.shape[:1]
            out = hidden.new_empty(*pairs, hidden.shape[1])
        return apply_experts(
            self.plan,
            hidden,
            topk_weights,
            topk_ids,
            *self.weights,
            out=out,
            expert_map=expert_map,
            apply_router_weight_on_input=apply_router_weight_on_input,
            routed_scaling_factor=routed_scaling_factor,
            no_combine=no_combine,
            keep_router_weight=keep_router_weight,
        )

    def apply_batched(
        self,
        hidden: Rows,
        counts: torch.Tensor,
        out: torch.Tensor | None = None,
        signal: torch.Tensor | None = None,
    ) -> torch.Tensor | Overlap:
        """Put rows ``[:counts[e]]`` of ``hidden[E, Mx, H]`` through expert e; others stay.

        Args:
            hidden: bf16 or fp16 (the dtype of the weights where those are of 16 bits), or, for FP8
                weights, ``(rows, scale)``: FP8 ``[E, Mx, H]`` and float32
                ``[E, Mx, ceil(H / k)]``, either of Mx and the last dimension contiguous. Such rows
                are used as they are; ``activation`` says whether they are rounded again between the
                GEMMs.
            counts: int32 ``[E]``.
            out: ``[E, Mx, H]``; None allocates the dtype of ``hidden``, or bf16 for FP8 rows.
            signal: int32 ``[E * ceil(Mx / 64)]``, zeroed: counts what the second GEMM has
                finished, for a combine step that runs beside it; as in
                :func:`.gemm.masked_moe_gemm_8bit`.

        Returns:
            ``out``, or ``(out, signal, block_m, threshold)`` where there is a signal: once
            ``signal[e * ceil(Mx / block_m) + i]`` has risen by ``threshold``, block i of
            ``block_m`` rows of expert e is complete.

        Raises:
            ValueError, TypeError: an argument is wrong or contradicts another.
        """
        if out is None:
            if isinstance(hidden, torch.Tensor):
                out = torch.empty_like(hidden)
            else:
                out = torch.empty_like(hidden[0], dtype=torch.bfloat16)
        return apply_batched_experts(
            self.plan, hidden, counts, *self.weights, out=out, signal=signal
        )

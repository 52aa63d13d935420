"""A whole MoE layer in one call: route, gather, gate/up, SwiGLU, down, weighted sum."""

from __future__ import annotations

import torch

from mate_plugin.kernels import library
from mate_plugin.kernels.checks import check_expert_ids, contract, index_checks_enabled
from mate_plugin.kernels.packing import as_rows

_fused = library.define(
    "fused_experts",
    "(Tensor hidden, Tensor? hidden_scale, Tensor topk_ids, Tensor? topk_weights, Tensor w13,"
    " Tensor? w13_scale, Tensor w2, Tensor? w2_scale, Tensor? expert_map, Tensor(a!) out,"
    " int block_n, int block_k, float limit, bool rounds, int type_tag, int hidden_tag,"
    " int weights_tag, int w13_tag, int w2_tag, int out_tag, int num_threads, int stream) -> ()",
)

_TOKENS = (
    "topk_ids: i32|i64 [T, topk] any",
    "topk_weights: f32|bf16|fp16 [T, topk] any optional",
    "out: bf16|fp16|f32 [T, H] out",
)
_CHECK_ROWS = contract("fused_experts", "hidden: bf16|fp16 [T, H] rows", *_TOKENS)
_CHECK_FP8_ROWS = contract(
    "fused_experts",
    "hidden: fp8 [T, H] rows",
    "hidden_scale: f32 [T, G] major",
    *_TOKENS,
    where={"G": "ceil_div(H, block)"},
)
_CHECK_MAP = contract("fused_experts", "expert_map: i32 [num_experts] any")


def fused_experts(
    hidden: torch.Tensor,
    hidden_scale: torch.Tensor | None,
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor | None,
    w13: torch.Tensor,
    w13_scale: torch.Tensor | None,
    w2: torch.Tensor,
    w2_scale: torch.Tensor | None,
    out: torch.Tensor,
    *,
    dtype: torch.dtype,
    block: tuple[int, int] = (128, 128),
    limit: float | None = None,
    expert_map: torch.Tensor | None = None,
) -> torch.Tensor:
    """``out[t] = sum_j w[t, j] * expert(topk_ids[t, j])(hidden[t])``, one parallel region.

    The result of a token does not depend on the other tokens: every sum has a fixed order. It is
    bit for bit what :func:`.moe.route`, :func:`.moe.permute`, the ragged-M GEMMs, SwiGLU and
    :func:`.moe.unpermute` give one after the other.

    Args:
        hidden: (T, H), H contiguous: bfloat16 or float16, or FP8 with ``hidden_scale``.
        hidden_scale: float32 (T, ceil(H / block[1])); what SwiGLU leaves is then rounded to e4m3
            too, per row and 128 columns.
        topk_ids: int32 or int64 (T, topk), any strides; ids of no (local) expert count nothing.
        topk_weights: float32, bfloat16 or float16 (T, topk); None is a plain sum.
        w13: (E, 2I, H), the gate rows above the up rows, FP8 with scales or 16-bit without, as
            :func:`mate_plugin.layers.weights.check_weights` wants them; w2: (E, H, I).
        w13_scale, w2_scale: float32 per ``block``; gate and up each start a block of their own.
        out: (T, H) bfloat16, float16 or float32, H contiguous; every row is written.
        dtype: bfloat16 or float16, to which SwiGLU is rounded. The GEMMs are rounded to it too,
            except for 16-bit rows beside FP8 weights, which stay in float32.
        limit: clamp of SwiGLU or None.
        expert_map: int32 (num_experts,), local index of each expert or -1.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. Nothing is written.
        NotImplementedError: there are no kernels for the device.
    """
    if hidden_scale is None:
        _CHECK_ROWS(hidden, topk_ids, topk_weights, out)
    else:
        _CHECK_FP8_ROWS(hidden, hidden_scale, topk_ids, topk_weights, out, block[1])
    if expert_map is not None:
        _CHECK_MAP(expert_map)
        if index_checks_enabled():
            check_expert_ids("expert_map", expert_map, w13.shape[0])
    shape = as_rows(w13).shape
    if hidden.shape[1] != shape[2]:
        raise ValueError(
            f"hidden: expected [T, {shape[2]}] beside w13 {list(shape)}, got {list(hidden.shape)}"
        )
    _fused(
        hidden,
        hidden_scale,
        topk_ids,
        topk_weights,
        w13,
        w13_scale,
        w2,
        w2_scale,
        expert_map,
        out,
        *block,
        -1.0 if limit is None else limit,
        w13_scale is None or hidden_scale is not None,
        library.tag(dtype),
        library.tag(hidden.dtype),
        library.tag(torch.float32 if topk_weights is None else topk_weights.dtype),
        library.tag(w13.dtype),
        library.tag(w2.dtype),
        library.tag(out.dtype),
        library.threads(None, hidden),
        library.stream(hidden),
    )
    return out

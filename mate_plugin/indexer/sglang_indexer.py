"""SGLang's DSA indexer where it has no forward of its own: its methods, with our kernels between.

SGLang serves CUDA, ROCm, XPU and Ascend. Queries, keys, their rotation and the head gates come from
its own methods on every device. On a CPU our kernels quantise, store, score and select; on MUSA
SGLang's Triton kernels quantise and store, and its own selection asks the resolvers for scores.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from mate_plugin.indexer.sglang_scores import num_processors
from mate_plugin.indexer.sparse_layer import (
    INDEXER,
    indexer_shape,
    logits_budget,
    note_layer,
    note_selection,
    select_tokens,
    write_keys,
)
from mate_plugin.kernels.quant import per_token_group_quant_fp8

FLOAT32_BYTES = 4
_DSA = "sglang.srt.layers.attention.dsa"
_INDEXER = f"{_DSA}.dsa_indexer.Indexer"
ROTATE = f"{_DSA}.dsa_indexer.rotate_activation"
# What :func:`forward` takes from SGLang on every device, and on a GPU besides.
TARGETS = (
    ROTATE,
    f"{_INDEXER}._get_q_k_bf16",
    f"{_INDEXER}._get_topk_paged",
    f"{_INDEXER}._weights_proj_bf16_in_fp32_out",
    f"{_DSA}.dsa_indexer._broadcast_indexer_topk_from_rank0",
    f"{_DSA}.dsa_indexer._make_eager_idle_topk_result",
    "sglang.srt.model_executor.forward_context.get_attn_backend",
    "sglang.srt.state_capturer.indexer_topk.maybe_capture_indexer_topk",
)
GPU_TARGETS = (
    f"{_INDEXER}._get_topk_ragged",
    f"{_INDEXER}._store_index_k_cache",
    f"{_DSA}.dsa_indexer.get_is_capture_mode",
    f"{_DSA}.dsa_indexer.resolve_paged_mqa_logits_metadata_fn",
    "sglang.kernels.ops.quantization.act_quant_triton.act_quant",
)


def forward(
    indexer: Any,
    x: torch.Tensor,
    q_lora: torch.Tensor,
    positions: torch.Tensor,
    forward_batch: Any,
    layer_id: int,
    return_indices: bool = True,
    **_: Any,
) -> torch.Tensor | None:
    """``Indexer.forward``: write the keys of this step, select tokens for each query.

    Returns int32 (T, index_topk), positions within the request and then -1, as the attention
    backend takes them, or None where no indices are asked for.
    """
    from sglang.srt.layers.attention.dsa import dsa_indexer
    from sglang.srt.model_executor.forward_context import get_attn_backend
    from sglang.srt.state_capturer.indexer_topk import maybe_capture_indexer_topk

    _prepare(indexer, x.device)
    metadata = get_attn_backend().get_indexer_metadata(layer_id, forward_batch)
    if forward_batch.forward_mode.is_idle() or metadata is None:
        topk = dsa_indexer._make_eager_idle_topk_result(x, indexer.index_topk, return_indices)
    else:
        select = _on_cpu if x.device.type == "cpu" else _on_gpu
        q, k, _raw = indexer._get_q_k_bf16(q_lora, x, positions, False, forward_batch=forward_batch)
        gates = indexer._weights_proj_bf16_in_fp32_out(x) * indexer.n_heads**-0.5
        topk = select(indexer, forward_batch, layer_id, metadata, q, k, gates, return_indices)
    topk = dsa_indexer._broadcast_indexer_topk_from_rank0(topk)
    return maybe_capture_indexer_topk(layer_id, topk)  # type: ignore[no-any-return]


def rotate(x: torch.Tensor) -> torch.Tensor:
    """``rotate_activation``: the last dimension D times a Hadamard matrix over sqrt(D).

    SGLang's own is a CUDA kernel. Raises ValueError unless D is a power of two.
    """
    depth = x.shape[-1]
    return (x.float() @ _hadamard(depth, x.device)).to(x.dtype)


@functools.cache
def _hadamard(size: int, device: torch.device) -> torch.Tensor:
    if size < 1 or size & (size - 1):
        raise ValueError(f"x: expected a power of two as the last dimension, got {size}")
    matrix = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    while matrix.shape[0] < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return (matrix * size**-0.5).to(device)


class KeysWithoutHeads(torch.nn.Module):
    """A rotary embedding that also takes keys (T, D): SGLang's plain torch form wants heads."""

    def __init__(self, rotary: torch.nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate ``query`` (T, heads, D) and ``key`` (T, D); both keep their shapes."""
        rotated_q, rotated_k = self.rotary(positions, query, key.unsqueeze(1))
        return rotated_q.view(query.shape), rotated_k.view(key.shape)


def _prepare(indexer: Any, device: torch.device) -> None:
    """What SGLang's constructor leaves out where it knows no GPU of its own."""
    if isinstance(indexer.rotary_emb, KeysWithoutHeads):
        return
    for name in ("num_init_tokens", "num_local_tokens"):
        if device.type == "cpu" and getattr(indexer, name):
            raise ValueError(
                f"{name}: the indexer of mate_dsa selects by scores alone and serves 0,"
                f" got {getattr(indexer, name)}"
            )
    indexer.rotary_emb = KeysWithoutHeads(indexer.rotary_emb)
    # More requests than this would be scored in parts, which only DeepGEMM needs.
    indexer.sm_count = num_processors() if device.type != "cpu" else 1 << 30
    if device.type == "cpu":
        note_layer(INDEXER, indexer_shape(indexer.head_dim, indexer.index_topk))


def _on_cpu(
    indexer: Any,
    forward_batch: Any,
    layer_id: int,
    metadata: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    gates: torch.Tensor,
    return_indices: bool,
) -> torch.Tensor | None:
    from sglang.srt.model_executor.forward_context import get_token_to_kv_pool

    pool, step = get_token_to_kv_pool(), metadata.step
    keys = pool.get_index_k_with_scale_buffer(layer_id=layer_id)
    keys = keys.view(-1, pool.index_page_size, indexer.head_dim + FLOAT32_BYTES)
    write_keys(step, k, keys)
    if not return_indices:
        return None
    codes, scale = per_token_group_quant_fp8(
        q.contiguous(), indexer.block_size, ue8m0=indexer.scale_fmt is not None
    )
    weights = gates.unsqueeze(-1) * scale * indexer.softmax_scale
    columns = step.block_table.shape[1] * pool.index_page_size
    fits = codes.shape[0] * columns * FLOAT32_BYTES <= logits_budget()
    name = f"layers.{layer_id}"
    if forward_batch.forward_mode.is_decode() and fits:
        topk = indexer._get_topk_paged(forward_batch, layer_id, codes, weights, metadata)
        note_selection(step, topk, indexer.head_dim, name)
        return topk  # type: ignore[no-any-return]
    topk = torch.empty(codes.shape[0], indexer.index_topk, dtype=torch.int32)
    select_tokens(step, codes, weights.squeeze(-1), keys, indexer.index_topk, topk, name)
    return topk


def _on_gpu(
    indexer: Any,
    forward_batch: Any,
    layer_id: int,
    metadata: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    gates: torch.Tensor,
    return_indices: bool,
) -> torch.Tensor | None:
    from sglang.kernels.ops.quantization.act_quant_triton import act_quant

    indexer._store_index_k_cache(forward_batch, layer_id, k, act_quant=act_quant)
    if not return_indices:
        return None
    codes, scale = act_quant(q.contiguous(), indexer.block_size, indexer.scale_fmt)
    weights = gates.unsqueeze(-1) * scale * indexer.softmax_scale
    mode = forward_batch.forward_mode
    if mode.is_decode() or mode.is_target_verify() or mode.is_draft_extend_v2():
        metadata = _scheduled(indexer, metadata, expanded=not mode.is_decode())
        topk = indexer._get_topk_paged(forward_batch, layer_id, codes, weights, metadata)
    else:
        topk = indexer._get_topk_ragged(False, forward_batch, layer_id, codes, weights, metadata)
    return topk  # type: ignore[no-any-return]


def _scheduled(indexer: Any, metadata: Any, expanded: bool) -> Any:
    """``metadata`` with the schedule of paged scores, which SGLang makes on CUDA only.

    expanded: whether a request has several queries, each with a length of its own.
    """
    from sglang.srt.layers.attention.dsa import dsa_indexer
    from sglang.srt.model_executor.forward_context import get_token_to_kv_pool

    if metadata.paged_mqa_schedule_metadata is not None:
        return metadata
    lens = metadata.get_seqlens_expanded() if expanded else metadata.get_seqlens_int32()
    schedule = dsa_indexer.resolve_paged_mqa_logits_metadata_fn()(
        lens.view(-1, 1), get_token_to_kv_pool().index_page_size, indexer.sm_count
    )
    if not dsa_indexer.get_is_capture_mode():
        # For the other layers of this step; in a graph each makes its own, as a replay must too.
        step = metadata.attn_metadata
        object.__setattr__(step, "paged_mqa_schedule_metadata", schedule)
    return dataclasses.replace(metadata, paged_mqa_schedule_metadata=schedule)

"""vLLM's attention backends for sparse MLA and for the indexer's key cache, on a CPU."""

# vLLM fixes the signatures of what it calls.
# ruff: noqa: ARG002, ARG004, RUF012

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from mate_plugin.indexer.batch import Batch, request_of_token
from mate_plugin.indexer.sparse_layer import (
    ATTENTION,
    attend,
    attention_shape,
    note_layer,
)
from mate_plugin.kernels.indexer_cache import write_latents

CACHE_DTYPES = ("auto", "bfloat16", "float16")


@dataclass
class StepMetadata(Batch):
    """A batch, and the counts by which vLLM's MLA layer splits it: here all tokens go one way."""

    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    max_seq_len: int
    num_decodes: int
    num_decode_tokens: int
    num_prefills: int = 0
    prefill: None = None
    decode: None = None


def build_metadata(common: Any) -> StepMetadata:
    """The step that vLLM's common metadata describes."""
    return StepMetadata(
        query_start_loc=common.query_start_loc,
        seq_lens=common.seq_lens,
        block_table=common.block_table_tensor,
        slot_mapping=common.slot_mapping,
        request_of_token=request_of_token(common.query_start_loc, common.num_actual_tokens),
        num_reqs=common.num_reqs,
        num_actual_tokens=common.num_actual_tokens,
        max_query_len=common.max_query_len,
        max_seq_len=common.max_seq_len,
        num_decodes=common.num_reqs,
        num_decode_tokens=common.num_actual_tokens,
    )


@functools.cache
def backend_classes() -> dict[str, type]:
    """Make the two backends (once per process)."""
    from vllm.model_executor.layers.attention.sparse_mla_attention import SharedTopkIndicesBuffer
    from vllm.v1.attention.backend import (
        AttentionBackend,
        AttentionMetadataBuilder,
        MLAAttentionImpl,
        MultipleOf,
    )

    from mate_plugin.kernels.mqa_checks import SMALLEST_BLOCK

    class MateSparseMLABuilder(AttentionMetadataBuilder):
        """Prompts and single tokens need no order in the batch."""

        reorder_batch_threshold = None

        def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
            super().__init__(kv_cache_spec, layer_names, vllm_config, device)

        # vLLM passes the second argument by this name.
        def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
            return build_metadata(common_attn_metadata)

    class MateSparseMLAImpl(MLAAttentionImpl, SharedTopkIndicesBuffer):
        """Every token, of a prompt or not, attends to the latents that its indexer selected."""

        is_sparse = True
        supports_dense_mha_prefill = False

        def __init__(
            self,
            num_heads,
            head_size,
            scale,
            num_kv_heads,
            alibi_slopes,
            sliding_window,
            kv_cache_dtype,
            logits_soft_cap,
            attn_type,
            kv_sharing_target_layer_name,
            topk_indices_buffer=None,
            indexer=None,
            **mla_args,
        ) -> None:
            _refuse("kv_cache_dtype", kv_cache_dtype, *CACHE_DTYPES)
            _refuse("sliding_window", sliding_window, None)
            _refuse("alibi_slopes", alibi_slopes, None)
            _refuse("logits_soft_cap", logits_soft_cap, None, 0.0)
            self.num_heads, self.head_size = num_heads, head_size
            self.scale, self.num_kv_heads = float(scale), num_kv_heads
            self.kv_cache_dtype = kv_cache_dtype
            self.kv_lora_rank = mla_args["kv_lora_rank"]
            self.init_topk_indices_buffer(indexer, topk_indices_buffer)
            note_layer(ATTENTION, attention_shape(num_heads, head_size, self.kv_lora_rank))

        def record_logical_topk_ready(self) -> None:
            """Nothing runs beside the layer on a CPU."""

        def do_kv_cache_update(
            self, kv_c_normed, k_pe, kv_cache, slot_mapping, kv_cache_dtype, k_scale
        ) -> None:
            if kv_cache.numel() > 0:
                write_latents(kv_c_normed, k_pe.squeeze(1), kv_cache, slot_mapping.flatten())

        def forward_mqa(self, q, kv_c_and_k_pe_cache, attn_metadata, layer):
            if isinstance(q, tuple):
                q = torch.cat(q, dim=-1)
            out = attend(
                attn_metadata,
                q,
                kv_c_and_k_pe_cache,
                self.topk_indices_buffer[: q.shape[0]],
                self.kv_lora_rank,
                self.scale,
            )
            return out, None

    class MateSparseMLABackend(AttentionBackend):
        """Sparse MLA over a 16-bit cache."""

        supported_kv_cache_dtypes = list(CACHE_DTYPES)

        @staticmethod
        def get_name() -> str:
            return "MATE_CPU_MLA_SPARSE"

        @staticmethod
        def get_impl_cls():
            return MateSparseMLAImpl

        @staticmethod
        def get_builder_cls():
            return MateSparseMLABuilder

        @staticmethod
        def get_supported_kernel_block_sizes(kv_cache_spec=None):
            return [MultipleOf(SMALLEST_BLOCK)]

        @classmethod
        def is_mla(cls) -> bool:
            return True

        @classmethod
        def is_sparse(cls) -> bool:
            return True

        @classmethod
        def supports_batch_invariance(cls) -> bool:
            return True

    class MateIndexerBackend(MateSparseMLABackend):
        """The indexer's keys: a cache of its own, written and read by the indexer alone."""

        @staticmethod
        def get_name() -> str:
            return "MATE_CPU_INDEXER"

    classes = (MateSparseMLABackend, MateIndexerBackend)
    for one in classes:
        one.__module__, one.__qualname__ = __name__, one.__name__
    return {one.__name__: one for one in classes}


def _refuse(name: str, value: Any, *allowed: Any) -> None:
    if value not in allowed:
        known = ", ".join(map(str, allowed))
        raise ValueError(f"{name}: sparse MLA on a CPU serves {known}, got {value}")


def __getattr__(name: str) -> Any:
    # vLLM finds the backend by this module's name; it can only be made once vLLM is imported.
    if name in ("MateSparseMLABackend", "MateIndexerBackend"):
        return backend_classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

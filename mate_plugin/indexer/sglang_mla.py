"""SGLang's attention backend ``mate_dsa``: MLA on a CPU, over selected tokens or all of them."""

# SGLang fixes the signatures of what it calls.
# ruff: noqa: ARG002

from __future__ import annotations

import functools
from typing import Any

from mate_plugin.indexer.sglang_scores import num_processors
from mate_plugin.indexer.sglang_step import Step, build_step
from mate_plugin.indexer.sparse_layer import ATTENTION, attend, attention_shape, note_layer
from mate_plugin.kernels.mqa_logits import get_paged_mqa_logits_metadata
from mate_plugin.kernels.topk import top_k
from mate_plugin.layers.attention import CACHE_DTYPES

BACKEND = "mate_dsa"


@functools.cache
def metadata_class() -> Any:
    """Make the indexer's view of a step (once per process)."""
    from sglang.srt.layers.attention.dsa.dsa_indexer_metadata import BaseIndexerMetadata

    class MateIndexerMetadata(BaseIndexerMetadata):
        """A step in the terms of SGLang's indexer; selects with our kernel."""

        def __init__(self, step: Step, page_size: int) -> None:
            self.step = step
            self.page_size = page_size

        @functools.cached_property
        def paged_mqa_schedule_metadata(self):
            # One for all layers; SGLang reads it where it selects for single tokens only.
            return get_paged_mqa_logits_metadata(
                self.step.seq_lens, self.page_size, num_processors()
            )

        def get_seqlens_int32(self):
            return self.step.seq_lens

        def get_page_table_64(self):
            return self.step.block_table

        def get_page_table_1(self):
            raise NotImplementedError("page_table_1: mate_dsa keeps pages of 64 tokens")

        def get_seqlens_expanded(self):
            return self.step.seen

        def get_dsa_extend_len_cpu(self):
            return self.step.new_tokens

        def get_token_to_batch_idx(self):
            return self.step.request_of_token

        def topk_transform(self, logits, topk, **options):
            if options:
                raise NotImplementedError(
                    f"topk_transform: mate_dsa serves rows of paged logits, got {sorted(options)}"
                )
            return top_k(logits, self.step.seen[: logits.shape[0]], topk)

    return MateIndexerMetadata


@functools.cache
def backend_class() -> Any:
    """Make the attention backend (once per process)."""
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    class MateDSABackend(AttentionBackend):
        """Every token, of a prompt or not, attends to the latents that its indexer selected, or
        where the model has none to all before it."""

        def __init__(self, model_runner) -> None:
            super().__init__()
            _refuse(model_runner)
            self.req_to_token_pool = model_runner.req_to_token_pool
            self.token_to_kv_pool = model_runner.token_to_kv_pool
            self.page_size = model_runner.page_size
            self.shapes: set[str] = set()
            self.step: Any = None
            self.metadata: Any = None

        def init_forward_metadata(self, forward_batch) -> None:
            self.step = build_step(
                forward_batch, self.req_to_token_pool.req_to_token, self.page_size
            )
            self.metadata = None

        def get_indexer_metadata(self, layer_id, forward_batch):
            if self.metadata is None:
                self.metadata = metadata_class()(self.step, self.page_size)
            return self.metadata

        def forward_extend(
            self, q, k, v, layer, forward_batch, save_kv_cache=True, topk_indices=None, **options
        ):
            if options:
                raise NotImplementedError(f"mate_dsa does not serve {', '.join(sorted(options))}")
            if save_kv_cache and k is not None:
                location = KVWriteLoc(forward_batch.out_cache_loc, None)
                self.token_to_kv_pool.set_kv_buffer(layer, location, k, v)
            heads, depth = layer.tp_q_head_num, layer.qk_head_dim
            self._note(heads, depth, layer.v_head_dim)
            cache = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
            out = attend(
                self.step,
                q.reshape(-1, heads, depth),
                cache.view(-1, self.page_size, depth),
                topk_indices,
                layer.v_head_dim,
                float(layer.scaling),
                lengths=self.step.seen if topk_indices is None else None,
            )
            return out.flatten(1)

        forward_decode = forward_extend

        def support_triton(self) -> bool:
            return False

        def _note(self, heads: int, depth: int, value_dim: int) -> None:
            shape = attention_shape(heads, depth, value_dim)
            if shape not in self.shapes:
                self.shapes.add(shape)
                note_layer(ATTENTION, shape)

    return MateDSABackend


def _refuse(model_runner: Any) -> None:
    if not model_runner.use_mla_backend:
        raise ValueError(
            f"--attention-backend {BACKEND}: serves models with MLA, got one without;"
            " try torch_native"
        )
    if model_runner.kv_cache_dtype not in CACHE_DTYPES:
        raise ValueError(
            f"--kv-cache-dtype: {BACKEND} serves bfloat16 and float16,"
            f" got {model_runner.kv_cache_dtype}"
        )

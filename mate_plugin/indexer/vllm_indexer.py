"""vLLM's SparseAttnIndexer on a CPU: one opaque op that writes keys, scores and selects."""

# vLLM fixes the signatures of what it calls.
# ruff: noqa: ARG001, ARG002

from __future__ import annotations

import functools
from typing import Any

import torch

from mate_plugin.indexer.sparse_layer import (
    INDEXER,
    indexer_shape,
    note_layer,
    select_tokens,
    write_keys,
)
from mate_plugin.kernels.quant import per_token_group_quant_fp8

OP = "mate_sparse_attn_indexer"


def quantise_queries(
    x: torch.Tensor,
    group_size: int,
    eps: float = 1e-10,
    dtype: torch.dtype | None = None,
    column_major_scales: bool = False,
    tma_aligned_scales: bool = False,
    out_q: torch.Tensor | None = None,
    use_ue8m0: bool | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """vLLM's ``per_token_group_quant_fp8``, which is Triton only, for the indexer's queries.

    Raises NotImplementedError for what the indexer does not ask for.
    """
    if (
        dtype not in (None, torch.float8_e4m3fn)
        or eps != 1e-10
        or column_major_scales
        or tma_aligned_scales
        or out_q is not None
    ):
        raise NotImplementedError(
            "per_token_group_quant_fp8: expected the arguments of vLLM's indexer (e4m3, row-major"
            f" scales, eps 1e-10), got dtype {dtype}, eps {eps}, column_major_scales"
            f" {column_major_scales}, tma_aligned_scales {tma_aligned_scales}"
        )
    return per_token_group_quant_fp8(x, group_size, ue8m0=bool(use_ue8m0))


@functools.cache
def define_op() -> None:
    """Register the op with torch (once per process)."""
    from vllm.forward_context import get_forward_context
    from vllm.utils.torch_utils import (
        LayerNameType,
        _resolve_layer_name,
        direct_register_custom_op,
    )

    # torch reads the schema from these annotations, so they must be objects.
    def run(q, k, weights, topk_indices_buffer, topk, layer_name) -> None:
        name = _resolve_layer_name(layer_name)
        context = get_forward_context()
        # While vLLM traces or profiles there is no batch, and nothing to select.
        if not isinstance(context.attn_metadata, dict):
            return
        cache = context.no_compile_layers[name].kv_cache
        batch = context.attn_metadata[name]
        write_keys(batch, k, cache)
        select_tokens(batch, q, weights, cache, topk, topk_indices_buffer, name)

    def fake(q, k, weights, topk_indices_buffer, topk, layer_name) -> None:
        return None

    tensor = torch.Tensor
    annotations = {
        "q": tensor,
        "k": tensor,
        "weights": tensor,
        "topk_indices_buffer": tensor,
        "topk": int,
        "layer_name": LayerNameType,
        "return": None,
    }
    run.__annotations__ = fake.__annotations__ = annotations
    direct_register_custom_op(
        OP, run, mutates_args=["topk_indices_buffer"], fake_impl=fake, dispatch_key="CPU"
    )


@functools.cache
def indexer_class() -> Any:
    """Make our SparseAttnIndexer and put it in the place of vLLM's (once per process)."""
    from vllm.model_executor.layers.sparse_attn_indexer import SparseAttnIndexer
    from vllm.utils.torch_utils import _encode_layer_name

    from mate_plugin.indexer.vllm_attention import backend_classes

    define_op()

    @SparseAttnIndexer.register_oot
    class MateSparseAttnIndexer(SparseAttnIndexer):
        """Selects within the logits budget of the settings."""

        def __init__(self, k_cache, *args, **kwargs) -> None:
            super().__init__(k_cache, *args, **kwargs)
            self._refuse_other_forms()
            # For this cache alone: the module's own backend builds its metadata with Triton.
            k_cache.get_attn_backend = lambda: backend_classes()["MateIndexerBackend"]
            note_layer(INDEXER, indexer_shape(self.head_dim, self.topk_tokens))

        def _refuse_other_forms(self) -> None:
            for name, wanted in (
                ("use_fp4_cache", False),
                ("compress_ratio", 1),
                ("candidate_blocks", None),
                ("skip_k_cache_insert", False),
                ("use_pcp", False),
                ("dcp_world_size", 1),
                ("scale_fmt", "ue8m0"),
            ):
                found = getattr(self, name, wanted)
                if found != wanted:
                    raise ValueError(
                        f"SparseAttnIndexer.{name}: mate-plugin serves {wanted} on a CPU,"
                        f" got {found}"
                    )
            if self.quant_block_size != self.head_dim:
                raise ValueError(
                    f"index_head_dim: mate-plugin serves one scale per key, head_dim"
                    f" {self.quant_block_size}, got {self.head_dim}"
                )

        def forward_native(self, hidden_states, q_quant, k, weights):
            getattr(torch.ops.vllm, OP)(
                q_quant,
                k,
                weights,
                self.topk_indices_buffer,
                self.topk_tokens,
                _encode_layer_name(self.k_cache.prefix),
            )
            return self.topk_indices_buffer

        forward_cpu = forward_native

    return MateSparseAttnIndexer

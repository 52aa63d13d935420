"""SGLang's seam for MLA on the platform mate_cpu: attention backend, indexer and their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mate_plugin.indexer import sglang_indexer, sglang_mla, sglang_scores, sparse_layer
from mate_plugin.indexer.sglang_mla import BACKEND
from mate_plugin.layers import sglang_release
from mate_plugin.layers.linear import dequantise_blocks
from mate_plugin.layers.sglang_attention import register
from mate_plugin.report import Hook

NAME = "sglang.sparse"
_DSA = "sglang.srt.layers.attention.dsa"
_COMMON = "sglang.srt.models.deepseek_common"
_WEIGHTS = f"{_COMMON}.deepseek_weight_loader.DeepseekV2WeightLoaderMixin.post_load_weights"
_ARGUMENTS = "sglang.srt.arg_groups.model_hook.handle_model_specific_adjustments"
TARGETS = (
    _WEIGHTS,
    _ARGUMENTS,
    f"{_DSA}.dsa_indexer_metadata.BaseIndexerMetadata.topk_transform",
    f"{_COMMON}.attention_backend_handler.AttentionBackendRegistry.register",
    f"{_COMMON}.attention_forward_methods.forward_methods.AttnForwardMethod.MLA",
    "sglang.kernels.fused_op.BaseFusedOp.register_oot_forward",
    "sglang.srt.arg_groups.choices.add_attention_backend_choices",
    "sglang.srt.layers.attention.attention_registry.register_attention_backend",
    "sglang.srt.mem_cache.memory_pool.DSATokenToKVPool.get_index_k_with_scale_buffer",
    "sglang.srt.mem_cache.memory_pool.KVWriteLoc",
    *sglang_indexer.TARGETS,
    *sglang_scores.TARGETS,
)


def install() -> Hook:
    """Register backend and indexer, or say what stands against it."""
    try:
        what = sparse_layer.describe()
    except NotImplementedError as error:
        return Hook(NAME, False, str(error))
    fill()
    return Hook(NAME, True, f"--attention-backend {BACKEND}: {what}")


def fill() -> None:
    """Register everything with SGLang."""
    from sglang.kernels.fused_op import BaseFusedOp
    from sglang.srt.layers.attention.dsa.dsa_indexer import Indexer
    from sglang.srt.models.deepseek_common.attention_backend_handler import (
        AttentionBackendRegistry,
    )
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
        AttnForwardMethod,
    )
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    register(BACKEND, sglang_mla.backend_class)
    # Under the other name SGLang would send prompts to MHA, which torch_native cannot do here.
    for name in (BACKEND, "torch_native"):
        AttentionBackendRegistry.register(name, lambda *_: AttnForwardMethod.MLA)
    BaseFusedOp.register_oot_forward(Indexer, sglang_indexer.forward, sglang_release.MATE_CPU)
    sglang_scores.fill()
    HookRegistry.register(sglang_indexer.ROTATE, sglang_indexer.rotate, HookType.REPLACE)
    HookRegistry.register(_WEIGHTS, absorb_exactly, HookType.AFTER)
    HookRegistry.register(_ARGUMENTS, _without_gpu, HookType.AROUND)


def absorb_exactly(_: Any, model: Any, is_nextn: bool = False, **_options: Any) -> None:
    """Split ``kv_b_proj`` into the absorbed projections without a second rounding.

    SGLang rounds its FP8 blocks to one scale per tensor first, and then the activations of each
    batch too, so that a token's result would depend on its neighbours.
    """
    layers = [model.model.decoder] if is_nextn else model.model.layers
    for layer in layers:
        attention: Any = getattr(layer, "self_attn", None)
        projection: Any = getattr(attention, "kv_b_proj", None)
        weight = getattr(projection, "weight", None)
        if weight is None or weight.dtype != torch.float8_e4m3fn:
            continue
        full = dequantise_blocks(weight, projection.weight_scale_inv).to(torch.bfloat16)
        nope, value = attention.qk_nope_head_dim, attention.v_head_dim
        key_part, value_part = full.unflatten(0, (-1, nope + value)).split([nope, value], dim=1)
        attention.w_kc = key_part.contiguous()
        attention.w_vc = value_part.contiguous().transpose(1, 2)


def _without_gpu(original: Any, server_args: Any) -> Any:
    with _capability((8, 0)):
        return original(server_args)


@contextmanager
def _capability(value: tuple[int, int]) -> Iterator[None]:
    """SGLang picks the cache's dtype for DSA by a GPU's capability, and asks torch for it even
    where there is none; 8.0 stands for one that takes 16 bits."""
    before = torch.cuda.get_device_capability
    torch.cuda.get_device_capability = lambda *_: value  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.cuda.get_device_capability = before

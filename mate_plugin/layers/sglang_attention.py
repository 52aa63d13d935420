"""SGLang's attention backend ``mate_mha``: attention of heads on the platform mate_cpu.

In torch, what is read again as part of a prompt differs from the same tokens generated: in 16 bits
the probabilities are rounded otherwise, in float32 sums are made in another order, which flips an
output now and then. Layers of plain causal attention run on our kernel, which has one order.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mate_plugin import report
from mate_plugin.indexer.sglang_step import build_step
from mate_plugin.layers import attention, sglang_pool
from mate_plugin.layers.plan import implementation
from mate_plugin.report import Hook

logger = logging.getLogger("sglang.mate_plugin")
NAME = "sglang.attention"
BACKEND = "mate_mha"
_NATIVE = "sglang.srt.layers.attention.torch_native_backend"
TARGETS = (
    f"{_NATIVE}.TorchNativeAttnBackend.forward_decode",
    f"{_NATIVE}.TorchNativeAttnBackend.forward_extend",
    f"{_NATIVE}.scaled_dot_product_attention",
    "sglang.srt.arg_groups.choices.add_attention_backend_choices",
    "sglang.srt.layers.attention.attention_registry.register_attention_backend",
    "sglang.srt.layers.radix_attention.AttentionType.DECODER_BIDIRECTIONAL",
    "sglang.srt.mem_cache.memory_pool.KVWriteLoc",
    *sglang_pool.TARGETS,
)


def install() -> Hook:
    """Register the attention backend, or say what stands against it."""
    try:
        impl, reason = implementation("sparse_mla", "cpu")
    except NotImplementedError as error:
        return Hook(NAME, False, str(error))
    register(BACKEND, backend_class)
    return Hook(NAME, True, f"--attention-backend {BACKEND}: causal attention, {impl}: {reason}")


def register(name: str, make: Any) -> None:
    """Offer an attention backend; ``make`` gives its class when the first one is wanted."""
    from sglang.srt.arg_groups import choices
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    if name not in choices.ATTENTION_BACKEND_CHOICES:
        choices.add_attention_backend_choices([name])
    register_attention_backend(name)(lambda runner: make()(runner))


@functools.cache
def backend_class() -> Any:
    """Make the attention backend (once per process)."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    class MateMHABackend(TorchNativeAttnBackend):
        """Plain causal layers on our kernel; others as in torch_native, in float32."""

        def __init__(self, model_runner) -> None:
            super().__init__(model_runner)
            self.encoder = model_runner.model_config.is_encoder_decoder
            # Of each layer that ran: why it runs in torch, or None.
            self.in_torch: dict[Any, str | None] = {}
            self.step: Any = None

        def init_forward_metadata(self, forward_batch) -> None:
            super().init_forward_metadata(forward_batch)
            self.step = None

        def forward_extend(
            self, q, k, v, layer, forward_batch, save_kv_cache=True, **options
        ) -> torch.Tensor:
            if options:
                raise NotImplementedError(f"{BACKEND} does not serve {', '.join(sorted(options))}")
            if layer not in self.in_torch:
                self.in_torch[layer] = self._place(layer)
            if reason := self.in_torch[layer]:
                report.layer_called(attention.KIND, _name(layer, reason))
                forward = (
                    super().forward_decode
                    if forward_batch.forward_mode.is_decode()
                    else super().forward_extend
                )
                with _float32():
                    return forward(q, k, v, layer, forward_batch, save_kv_cache)
            if save_kv_cache and k is not None and v is not None:
                location = KVWriteLoc(forward_batch.out_cache_loc, None)
                self.token_to_kv_pool.set_kv_buffer(layer, location, k, v)
            # Not with the metadata: SGLang may cut a batch to its real tokens for each layer.
            if self.step is None:
                table = self.req_to_token_pool.req_to_token
                self.step = build_step(forward_batch, table, self.token_to_kv_pool.page_size)
            out = attention.attend(
                self.step,
                self.step.seen,
                q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim),
                self.token_to_kv_pool.pages(layer.layer_id),
                float(layer.scaling),
            )
            return out.flatten(1)

        forward_decode = forward_extend

        def _place(self, layer: Any) -> str | None:
            _refuse(layer)
            reason = _layer_in_torch(layer, self.encoder) or _pool_in_torch(self.token_to_kv_pool)
            if reason is None:
                attention.note_layer(_name(layer))
            else:
                if reason not in self.in_torch.values():
                    logger.info("mate-plugin: attention runs in torch in float32: %s", reason)
                name = _name(layer, reason)
                report.layer_built(attention.KIND, name, f"torch in float32: {reason}")
            return reason

    return MateMHABackend


def _name(layer: Any, reason: str = "") -> str:
    heads, kv_heads = layer.tp_q_head_num, layer.tp_k_head_num
    shape = attention.shape_name(heads, kv_heads, layer.qk_head_dim, layer.v_head_dim)
    # Layers of one shape may differ in what serves them.
    return f"{shape}, {reason}" if reason else shape


def _refuse(layer: Any) -> None:
    """Raise for what torch_native would pass over, and our kernel has not."""
    from sglang.srt.layers.radix_attention import AttentionType

    wrong = {
        "logit_cap": layer.logit_cap,
        "xai_temperature_len": layer.xai_temperature_len > 0,
        "use_irope": layer.use_irope,
        "pos_encoding_mode": layer.pos_encoding_mode != "NONE",
        "attn_type": layer.attn_type == AttentionType.DECODER_BIDIRECTIONAL,
    }
    for name, given in wrong.items():
        if given:
            raise NotImplementedError(
                f"--attention-backend {BACKEND}: does not serve layers with {name},"
                f" got {getattr(layer, name)} in layer {layer.layer_id}"
            )


def _layer_in_torch(layer: Any, encoder: bool) -> str | None:
    """Why our kernel does not serve a layer, or None."""
    from sglang.srt.layers.radix_attention import AttentionType

    if encoder or layer.is_cross_attention:
        return "a model with an encoder"
    if layer.attn_type != AttentionType.DECODER:
        return "attention without a causal mask"
    if layer.sliding_window_size > -1:
        return f"a sliding window of {layer.sliding_window_size}"
    return attention.unserved_shape(
        layer.tp_q_head_num, layer.tp_k_head_num, layer.qk_head_dim, layer.v_head_dim
    )


def _pool_in_torch(pool: Any) -> str | None:
    """Why our kernel cannot read a cache, or None."""
    if option := sglang_pool.apart():
        return f"keys apart from values for {option}"
    if pool.dtype not in attention.CACHE_DTYPES:
        return f"a cache of {pool.dtype}"
    if not isinstance(pool, sglang_pool.pool_class()) or pool.joint is None:
        return f"the cache layout of {type(pool).__name__}"
    return None


@contextmanager
def _float32() -> Iterator[None]:
    """Exchange the function that torch_native_backend calls; one thread computes."""
    from sglang.srt.layers.attention import torch_native_backend as native

    attend = native.scaled_dot_product_attention

    def wide(query: Any, key: Any, value: Any, **options: Any) -> torch.Tensor:
        return attend(query.float(), key.float(), value.float(), **options).to(query.dtype)

    native.scaled_dot_product_attention = wide
    try:
        yield
    finally:
        native.scaled_dot_product_attention = attend

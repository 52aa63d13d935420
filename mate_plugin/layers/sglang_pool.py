"""SGLang's cache of keys and values with the value of a head before its key, for one kernel."""

from __future__ import annotations

import functools
from typing import Any

import torch

from mate_plugin.kernels.contract_errors import ceil_div
from mate_plugin.layers.attention import CACHE_DTYPES

_POOL = "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool"
TARGETS = (
    f"{_POOL}._create_buffers_normal",
    f"{_POOL}._kv_buffer_shapes",
    "sglang.srt.arg_groups.model_override_base.resolved_view",
    "sglang.srt.runtime_context.attention_backends",
    "sglang.srt.runtime_context.get_server_args",
)
# Options under which SGLang copies or sends the buffers of keys and values as blocks of bytes, or
# wants a pool class of its own.
_APART = (
    "enable_hierarchical_cache",
    "enable_lmcache",
    "enable_flexkv",
    "enable_page_major_kv_layout",
    "enable_kv_cache_sharding",
    "enable_unified_memory",
    "speculative_algorithm",
)


def apart() -> str | None:
    """The option of this process that needs keys apart from values, or None."""
    from sglang.srt.arg_groups.model_override_base import resolved_view
    from sglang.srt.runtime_context import get_server_args

    arguments = resolved_view(get_server_args())
    if arguments.disaggregation_mode != "null":
        return "--disaggregation-mode"
    for name in _APART:
        if getattr(arguments, name):
            return "--" + name.replace("_", "-")
    return None


def chosen(backend: str) -> bool:
    """Whether ``backend`` serves prompts or single tokens, and may lay out the cache."""
    from sglang.srt.runtime_context import attention_backends

    return backend in attention_backends() and apart() is None


@functools.cache
def pool_class() -> Any:
    """Make the pool class (once per process)."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    class MateMHATokenToKVPool(MHATokenToKVPool):
        """Keys and values as SGLang reads and writes them, which are views of joint rows."""

        # (num_pages, page_size, head_num, v_head_dim + head_dim) of each layer: values, then keys.
        # None where the layout or dtype is another.
        joint: list[torch.Tensor] | None = None

        def _create_buffers_normal(self) -> None:
            if self.kv_cache_layout != "nhd" or self.store_dtype not in CACHE_DTYPES:
                super()._create_buffers_normal()
                return
            (tokens, heads, depth), (_, _, value_dim) = self._kv_buffer_shapes()
            pages = ceil_div(tokens, self.page_size)
            self.joint = [
                torch.zeros(
                    (pages, self.page_size, heads, value_dim + depth),
                    dtype=self.store_dtype,
                    device=self.device,
                )
                for _ in range(self.layer_num)
            ]
            flat = [pages.flatten(0, 1)[:tokens] for pages in self.joint]
            self.v_buffer = [rows[..., :value_dim] for rows in flat]
            self.k_buffer = [rows[..., value_dim:] for rows in flat]

        def _clear_buffers(self) -> None:
            super()._clear_buffers()
            self.joint = None

        def pages(self, layer_id: int) -> torch.Tensor:
            """Joint rows of a layer: (num_pages, page_size, head_num, v_head_dim + head_dim)."""
            assert self.joint is not None
            return self.joint[layer_id - self.start_layer]

    return MateMHATokenToKVPool

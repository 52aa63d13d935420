"""SGLang's plain torch attention on the platform mate_cpu, in float32 inside: ``mate_native``.

In 16 bits, torch rounds the probabilities of one query otherwise than those of many, so that a
token read again as part of a prompt would differ from the same token generated.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mate_plugin.layers import seams, sglang_release
from mate_plugin.report import Hook

NAME = "sglang.attention"
BACKEND = "mate_native"
_NATIVE = "sglang.srt.layers.attention.torch_native_backend"
TARGETS = (
    f"{_NATIVE}.TorchNativeAttnBackend.forward_decode",
    f"{_NATIVE}.TorchNativeAttnBackend.forward_extend",
    f"{_NATIVE}.scaled_dot_product_attention",
    "sglang.srt.arg_groups.choices.add_attention_backend_choices",
    "sglang.srt.layers.attention.attention_registry.register_attention_backend",
)


def install() -> Hook:
    """Register the attention backend, or say what stands against it."""
    if absent := seams.unresolved(TARGETS):
        return Hook(NAME, False, sglang_release.lacks(absent))
    register(BACKEND, backend_class)
    return Hook(NAME, True, f"--attention-backend {BACKEND}: torch_native in float32")


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

    class MateNativeBackend(TorchNativeAttnBackend):
        """SGLang's gathering of keys and values, and float32 between."""

        def forward_extend(self, *args, **kwargs):
            with _float32():
                return super().forward_extend(*args, **kwargs)

        def forward_decode(self, *args, **kwargs):
            with _float32():
                return super().forward_decode(*args, **kwargs)

    return MateNativeBackend


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

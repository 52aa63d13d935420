"""What test_attention.py runs inside a process with SGLang: mate_mha on its real cache."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_batches import Scene, part_of, scene
from sglang_layers import publish

from mate_plugin import report

BF16, F16 = torch.bfloat16, torch.float16
LENS, COUNTS = [70, 5, 133], [20, 5, 1]
SCALE = 0.3
# Half a unit in the last place of 16 bits, and float32's own error.
ROUNDED = {BF16: {"rtol": 2**-8, "atol": 1e-5}, F16: {"rtol": 2**-11, "atol": 1e-5}}


def forward_mode(name: str) -> Any:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    return ForwardMode[name]


def layer_of(heads: int = 4, kv_heads: int = 2, depth: int = 32, **options: Any) -> Any:
    from sglang.srt.layers.radix_attention import RadixAttention

    return RadixAttention(heads, depth, SCALE, kv_heads, layer_id=1, **options)


def pool_of(layer: Any, pages: int, page_size: int, cls: Any = None, **changes: Any) -> Any:
    """A cache of two layers for ``layer``, of our class unless another is given."""
    from mate_plugin.layers.sglang_pool import pool_class

    fields = {
        "size": (pages - 1) * page_size,
        "page_size": page_size,
        "dtype": BF16,
        "head_num": layer.tp_k_head_num,
        "head_dim": layer.qk_head_dim,
        "v_head_dim": layer.v_head_dim,
        "layer_num": 2,
        "device": "cpu",
        "enable_memory_saver": False,
    }
    return (cls or pool_class())(**fields | changes)


def backend_of(made: Scene, pool: Any, encoder: bool = False) -> Any:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    return ATTENTION_BACKENDS["mate_mha"](
        SimpleNamespace(
            device="cpu",
            token_to_kv_pool=pool,
            req_to_token_pool=SimpleNamespace(req_to_token=made.req_to_token),
            model_config=SimpleNamespace(is_encoder_decoder=encoder),
        )
    )


class Prompts:
    """Random queries, keys and values of requests, and the attention that they should give."""

    def __init__(self, layer: Any, dtype: torch.dtype = BF16) -> None:
        torch.manual_seed(0)
        heads, kv_heads = layer.tp_q_head_num, layer.tp_k_head_num
        self.layer = layer
        self.q = [torch.randn(n, heads, layer.qk_head_dim).to(dtype) for n in LENS]
        self.k = [torch.randn(n, kv_heads, layer.qk_head_dim).to(dtype) for n in LENS]
        self.v = [torch.randn(n, kv_heads, layer.v_head_dim).to(dtype) for n in LENS]

    def store(self, pool: Any, made: Scene) -> None:
        """Put what a step finds in the cache there, and NaN everywhere else."""
        key, value = pool.get_key_buffer(1), pool.get_value_buffer(1)
        key.fill_(torch.nan)
        value.fill_(torch.nan)
        for r, (rows, count) in enumerate(zip(made.rows, made.counts, strict=True)):
            before = len(rows) - count
            key[rows[:before]] = self.k[r][:before].to(key.dtype)
            value[rows[:before]] = self.v[r][:before].to(value.dtype)

    def run(self, backend: Any, step: Scene) -> torch.Tensor:
        """A step through the backend: (T, heads * V)."""
        at = step.tokens()
        q, k, v = (torch.stack([t[r][n - 1] for r, n in at]) for t in (self.q, self.k, self.v))
        backend.init_forward_metadata(step.forward_batch)
        return backend.forward(q.flatten(1), k, v, self.layer, step.forward_batch)

    def expected(self, step: Scene, window: int = -1) -> torch.Tensor:
        """The same in float64, token by token and head by head."""
        each = self.layer.tp_q_head_num // self.layer.tp_k_head_num
        rows = []
        for r, seen in step.tokens():
            first = max(0, seen - 1 - window) if window > -1 else 0
            for h in range(self.layer.tp_q_head_num):
                k, v = (t[r][first:seen, h // each].double() for t in (self.k, self.v))
                chances = (k @ self.q[r][seen - 1, h].double() * SCALE).softmax(0)
                rows.append(chances @ v)
        return torch.stack(rows).view(len(step.tokens()), -1)


def steps(page_size: int = 64) -> list[Scene]:
    return [
        scene(forward_mode("EXTEND"), LENS, COUNTS, page_size),
        scene(forward_mode("DECODE"), LENS, None, page_size),
    ]


def attention_layers() -> dict[str, Any]:
    return {one.shape: one for one in report.layers() if one.kind == "attention"}


def plain() -> None:
    """Groups of heads, prompts after prefixes and single tokens, in pages of any size."""
    from mate_plugin.kernels import library

    publish()
    for dtype, page_size, shape in (
        (BF16, 64, {}),
        (BF16, 1, {"heads": 6, "kv_heads": 1, "depth": 16}),
        (F16, 16, {"heads": 3, "kv_heads": 3, "depth": 64, "v_head_dim": 32}),
        (BF16, 48, {"heads": 8, "kv_heads": 2, "depth": 32, "v_head_dim": 48}),
    ):
        layer = layer_of(**shape)
        prompts = Prompts(layer, dtype)
        for made in steps(page_size):
            pool = pool_of(layer, made.pages, page_size, dtype=dtype)
            prompts.store(pool, made)
            found = prompts.run(backend_of(made, pool), made)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), prompts.expected(made), **ROUNDED[dtype])
    assert {shape: one.calls for shape, one in attention_layers().items()} == {
        "4/2x32->32": 2,
        "6/1x16->16": 2,
        "3/3x64->32": 2,
        "8/2x32->48": 2,
    }
    calls = {one["op"]: one["calls"] for one in library.counters()}
    assert calls["sparse_mla"] == 2 * (2 + 1 + 3 + 2)


def read_again() -> None:
    """A token generated has the bits of the token read as a part of a prompt, alone or not."""
    publish()
    layer = layer_of(heads=8, kv_heads=2, depth=64)
    prompts = Prompts(layer)
    made = scene(forward_mode("EXTEND"), LENS, LENS)
    pool = pool_of(layer, made.pages, 64)
    prompts.store(pool, made)
    backend = backend_of(made, pool)
    whole = prompts.run(backend, made)
    rows = {token: whole[i] for i, token in enumerate(made.tokens())}
    for mode, until, new in (
        ("EXTEND", [65, 3, 64], [40, 1, 64]),
        ("DECODE", [64, 2, 130], None),
        ("DECODE", [66, 5, 131], None),
    ):
        step = part_of(made, forward_mode(mode), until, new)
        again = prompts.run(backend, step)
        for i, token in enumerate(step.tokens()):
            assert torch.equal(again[i], rows[token]), (mode, token)


def in_torch() -> None:
    """What the kernel does not serve runs in float32, and the report and the log say why once."""
    from sglang.srt.layers.attention import torch_native_backend as module

    publish()
    before = module.scaled_dot_product_attention
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("sglang.mate_plugin").addHandler(handler)
    expected = []
    for options, encoder, reason in (
        ({"sliding_window_size": 20}, False, "a sliding window of 20"),
        ({"depth": 24}, False, "a head of 24, which is no multiple of 16"),
        ({"heads": 3, "kv_heads": 3, "depth": 40}, True, "a model with an encoder"),
    ):
        layer, other = layer_of(**options), layer_of(**options)
        prompts = Prompts(layer)
        for made in steps():
            pool = pool_of(layer, made.pages, 64)
            prompts.store(pool, made)
            backend = backend_of(made, pool, encoder)
            found = prompts.run(backend, made)
            wanted = prompts.expected(made, layer.sliding_window_size)
            torch.testing.assert_close(found.double(), wanted, **ROUNDED[BF16])
            assert module.scaled_dot_product_attention is before
            prompts.layer = other
            assert torch.equal(prompts.run(backend, made), found)
            prompts.layer = layer
            expected.append(f"mate-plugin: attention runs in torch in float32: {reason}")
        (one,) = [one for shape, one in attention_layers().items() if shape.endswith(reason)]
        assert (one.how, one.built, one.calls) == (f"torch in float32: {reason}", 4, 4)
    assert said == expected


def other_caches() -> None:
    """A cache of another class or dtype is read in torch, with its reason."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    publish()
    layer = layer_of()
    for cls, dtype, reason in (
        (MHATokenToKVPool, BF16, "the cache layout of MHATokenToKVPool"),
        (None, torch.float32, "a cache of torch.float32"),
    ):
        prompts = Prompts(layer)
        for made in steps():
            pool = pool_of(layer, made.pages, 64, cls, dtype=dtype)
            prompts.store(pool, made)
            found = prompts.run(backend_of(made, pool), made)
            torch.testing.assert_close(found.double(), prompts.expected(made), **ROUNDED[BF16])
        (one,) = [one for shape, one in attention_layers().items() if shape.endswith(reason)]
        assert (one.how, one.built, one.calls) == (f"torch in float32: {reason}", 2, 2)


def refusals() -> None:
    """What torch_native would pass over is refused by name."""
    from sglang.srt.layers.radix_attention import AttentionType

    publish()
    made = scene(forward_mode("DECODE"), LENS)
    bidirectional = AttentionType.DECODER_BIDIRECTIONAL
    for options, said in (
        ({"logit_cap": 30.0}, "logit_cap, got 30.0"),
        ({"use_irope": True}, "use_irope, got True"),
        ({"pos_encoding_mode": "ALIBI"}, "pos_encoding_mode, got ALIBI"),
        ({"attn_type": bidirectional}, f"attn_type, got {bidirectional}"),
    ):
        layer = layer_of(**options)
        backend = backend_of(made, pool_of(layer, made.pages, 64))
        message = f"--attention-backend mate_mha: does not serve layers with {said} in layer 1"
        with pytest.raises(NotImplementedError) as error:
            Prompts(layer).run(backend, made)
        assert str(error.value) == message
    layer = layer_of()
    backend = backend_of(made, pool_of(layer, made.pages, 64))
    with pytest.raises(NotImplementedError, match=r"^mate_mha does not serve k_rope, sinks$"):
        backend.forward(None, None, None, layer, made.forward_batch, sinks=1, k_rope=1)


def cache_views() -> None:
    """SGLang's own writes, reads and moves go through the joint rows, value first."""
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    publish()
    layer = layer_of(depth=32, v_head_dim=16)
    for page_size, size in ((64, 128), (1, 100), (16, 100)):
        pool = pool_of(layer, 0, page_size, size=size)
        at = torch.tensor([3, 90, 17])
        k, v = torch.randn(3, 2, 32).to(BF16), torch.randn(3, 2, 16).to(BF16)
        pool.set_kv_buffer(layer, KVWriteLoc(at, None), k, v)
        assert torch.equal(pool.get_key_buffer(1)[at], k)
        assert torch.equal(pool.get_value_buffer(1)[at], v)
        assert pool.get_key_buffer(1).shape == (size + page_size, 2, 32)
        pages = pool.pages(1)
        rows = pages[at // page_size, at % page_size]
        assert torch.equal(rows, torch.cat([v, k], -1))
        assert int(pages.count_nonzero()) == int(k.count_nonzero() + v.count_nonzero())
        assert not pool.pages(0).any()
        saved = pool.get_cpu_copy(at)
        pool.load_cpu_copy(saved, at + 1)
        assert torch.equal(pool.get_key_buffer(1)[at + 1], k)
        assert torch.equal(pool.get_value_buffer(1)[at + 1], v)
        bytes_of_layer = (size + page_size) * 2 * (32 + 16) * 2
        assert sum(pool.get_kv_size_bytes()) == 2 * bytes_of_layer


def cache_layouts() -> None:
    """Caches that the kernel does not read stay as SGLang makes them."""
    publish()
    layer = layer_of()
    for heads_first, dtype in (("0", torch.float8_e4m3fn), ("1", BF16)):
        os.environ["SGLANG_USE_HND_KVCACHE"] = heads_first
        pool = pool_of(layer, 3, 64, dtype=dtype)
        assert pool.joint is None
        assert pool.get_key_buffer(1).is_contiguous()


def pool_choice() -> None:
    """Our pool where our backend serves and nothing needs keys apart from values."""
    from sglang.srt.platforms import current_platform
    from sglang.srt.runtime_context import get_context

    from mate_plugin.layers.sglang_pool import apart, pool_class

    for options, ours, reason in (
        ({"attention_backend": "mate_mha"}, True, None),
        ({"attention_backend": "torch_native"}, False, None),
        ({"attention_backend": "torch_native", "decode_attention_backend": "mate_mha"}, True, None),
        (
            {"attention_backend": "mate_mha", "enable_hierarchical_cache": True},
            False,
            "--enable-hierarchical-cache",
        ),
        (
            {"attention_backend": "mate_mha", "disaggregation_mode": "prefill"},
            False,
            "--disaggregation-mode",
        ),
    ):
        with get_context().override_server_args(**options):
            assert apart() == reason
            found = current_platform.get_kv_pool_cls(kind="mha")
            assert found is (pool_class() if ours else None), options
            assert current_platform.get_kv_pool_cls(kind="mla") is None

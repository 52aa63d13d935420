"""One valid call of each published function, and how a spoilt one must fail."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gemm_cases import BF16, E4M3, Maker, bits, ceil_div

from mate_plugin.kernels import deep_gemm, gemm, indexer_cache, sparse_mla
from mate_plugin.kernels.index_topk import index_topk
from mate_plugin.kernels.topk import top_k

T, E, N, K = 8, 3, 130, 260  # rows, experts, outputs, inputs
KB, NB = ceil_div(K, 128), ceil_div(N, 128)
Arguments = dict[str, Any]


def i32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def fp8_pair(make: Maker, shape: tuple[int, ...], *scale: int) -> tuple[torch.Tensor, torch.Tensor]:
    return make.normal(*shape, dtype=E4M3), make.scale(*scale)


def ragged_m(kind: str) -> Arguments:
    make = Maker(1)
    a, b = fp8_pair(make, (T, K), T, KB), fp8_pair(make, (E, N, K), E, NB, KB)
    wide = {"8bit": (a, b), "w8a16": (make.normal(T, K, dtype=BF16), b)}.get(kind)
    plain = make.normal(T, K, dtype=BF16), make.normal(E, N, K, dtype=BF16)
    input_a, input_b = wide or plain
    return {
        "input_a": input_a,
        "input_b": input_b,
        "ragged_tokens_info": i32(2, 0, 5) if kind == "16bit" else i32(0, 1, 2, -1, 0, 1, 2, -1),
        "out": torch.full((T, N), 3.0, dtype=BF16),
        "gemm_mode": "per_expert" if kind == "16bit" else "per_token",
    }


def masked(kind: str) -> Arguments:
    make = Maker(2)
    a, b = fp8_pair(make, (E, T, K), E, T, KB), fp8_pair(make, (E, N, K), E, NB, KB)
    wide = {"8bit": (a, b), "w8a16": (make.normal(E, T, K, dtype=BF16), b)}.get(kind)
    plain = make.normal(E, T, K, dtype=BF16), make.normal(E, N, K, dtype=BF16)
    names = ("a", "b") if kind == "16bit" else ("input_a", "input_b")
    return {
        **dict(zip(names, wide or plain, strict=True)),
        "masked_tokens_info": i32(3, 0, 8),
        "out": torch.full((E, T, N), 3.0, dtype=BF16),
        "enable_overlap": True,
        "signal": torch.zeros(E, dtype=torch.int32),
    }


def ragged_k(kind: str) -> Arguments:
    make = Maker(3)
    a, b = fp8_pair(make, (T, N), E, N), fp8_pair(make, (T, K), E, K)
    plain = make.normal(T, N, dtype=BF16), make.normal(T, K, dtype=BF16)
    input_a, input_b = (a, b) if kind == "8bit" else plain
    return {
        "input_a": input_a,
        "input_b": input_b,
        "ragged_tokens_info": i32(3, 0, 5),
        "out": torch.full((E, N, K), 3.0),
    }


def bmm_fp16() -> Arguments:
    make = Maker(4)
    return {
        "a": make.normal(2, T, K, dtype=BF16),
        "b": make.normal(2, K, N, dtype=BF16),
        "out_dtype": BF16,
        "out": torch.full((2, T, N), 3.0, dtype=BF16),
        "c": make.normal(2, T, N, dtype=BF16),
    }


def bmm_fp8() -> Arguments:
    make = Maker(5)
    return {
        "a": make.normal(2, T, K, dtype=E4M3),
        "b": make.normal(2, N, K, dtype=E4M3).transpose(1, 2),
        "a_scale": make.scale(2, T, 1),
        "b_scale": make.scale(1),
        "out_dtype": BF16,
        "out": torch.full((2, T, N), 3.0, dtype=BF16),
        "scale_granularity_mnk": (1, -1, -1),
        "output_scale": torch.ones(1),
    }


def groupwise() -> Arguments:
    make = Maker(6)
    return {
        "a": make.normal(T, K, dtype=E4M3),
        "b": make.normal(N, K, dtype=E4M3),
        "a_scale": make.scale(T, KB),
        "b_scale": make.scale(NB, KB),
        "out": torch.full((T, N), 3.0).to(E4M3),
        "output_scale": torch.full((T, NB), 3.0),
    }


def groupwise_w8a16() -> Arguments:
    arguments = {k: v for k, v in groupwise().items() if k in ("b", "b_scale")}
    out = torch.full((T, N), 3.0, dtype=BF16)
    return {"a": Maker(7).normal(T, K, dtype=BF16), **arguments, "out": out}


def deep_dense() -> Arguments:
    make = Maker(8)
    return {
        "a": fp8_pair(make, (T, K), T, KB),
        "b": fp8_pair(make, (N, K), NB, KB),
        "d": torch.full((T, N), 3.0),
        "c": make.normal(T, N),
    }


def deep_contiguous() -> Arguments:
    make = Maker(9)
    return {
        "a": fp8_pair(make, (T, K), T, KB),
        "b": fp8_pair(make, (E, N, K), E, NB, KB),
        "d": torch.full((T, N), 3.0, dtype=BF16),
        "grouped_layout": i32(0, 1, 2, -1, 0, 1, 2, -1),
    }


def deep_masked() -> Arguments:
    make = Maker(10)
    return {
        "a": fp8_pair(make, (E, T, K), E, T, KB),
        "b": fp8_pair(make, (E, N, K), E, NB, KB),
        "d": torch.full((E, T, N), 3.0, dtype=BF16),
        "masked_m": i32(3, 0, 8),
        "expected_m": 4,
    }


def deep_k_grouped() -> Arguments:
    make = Maker(11)
    return {
        "a": fp8_pair(make, (T, N), 2, N),
        "b": fp8_pair(make, (T, K), 2, K),
        "d": torch.full((E, N, K), 3.0),
        "ks_cpu": [3, 0, 5],
        "grouped_layout": i32(3, 0, 5),
        "c": make.normal(E, N, K),
    }


def sparse_attention(**selections: torch.Tensor) -> Arguments:
    make = Maker(12)
    return {
        "q": make.normal(T, 3, 48, dtype=BF16),
        "kv_cache": make.normal(5, 16, 48, dtype=BF16),
        "indices": None,
        **selections,
        "block_table": i32(0, 1, 4, 2).view(2, 2),
        "request_of_token": i32(0, 1, 0, -1, 1, 1, 0, 1),
        "value_dim": 32,
        "scale": 0.1,
        "out": torch.full((T, 3, 32), 3.0),
    }


def largest() -> Arguments:
    return {
        "logits": Maker(12).normal(T, N),
        "lengths": i32(0, 1, 5, 9, N, N, 100, 30),
        "k": 6,
        "starts": i32(0, 0, 5, 2, 0, 77, 0, 10),
        "out": torch.full((T, 6), 3, dtype=torch.int32),
    }


def indexed() -> Arguments:
    make = Maker(13)
    cache = make.integers(0, 120, 5, 64, 1, 36).to(torch.uint8)
    cache.view(5, -1)[:, 64 * 32 :] = make.scale(5, 64).view(torch.uint8)
    return {
        "q": make.normal(T, 4, 32, dtype=E4M3),
        "kv_cache": cache,
        "weights": make.normal(T, 4),
        "query_start_loc": i32(0, 1, 7),
        "context_lens": i32(100, 130),
        "block_table": i32(4, 2, 0, 1, 3, 0).view(2, 3),
        "k": 20,
        "budget": 4096,
        "out": torch.full((T, 20), 3, dtype=torch.int32),
    }


def write_k() -> Arguments:
    return {
        "k": Maker(14).normal(T, 32, dtype=BF16),
        "kv_cache": torch.full((3, 16, 36), 3, dtype=torch.uint8),
        "slot_mapping": i32(5, 47, -1, 0, 16, 9),
        "ue8m0": True,
    }


def gather() -> Arguments:
    return {
        "kv_cache": Maker(15).integers(0, 100, 3, 16, 36).to(torch.uint8),
        "block_table": i32(2, 0, 1, -1).view(2, 2),
        "context_lens": i32(20, 3),
        "out_k": torch.zeros(25, 32).to(E4M3),
        "out_scale": torch.full((25,), 3.0),
    }


def latents() -> Arguments:
    make = Maker(16)
    return {
        "latent": make.normal(T, 20, dtype=BF16),
        "rope": make.normal(T, 12, dtype=BF16),
        "kv_cache": torch.full((3, 5, 32), 3.0, dtype=BF16),
        "slot_mapping": i32(5, 14, -1, 0, 6, 9),
    }


CALLS: dict[str, tuple[Callable[..., Any], Callable[[], Arguments]]] = {
    "ragged_m_moe_gemm_8bit": (gemm.ragged_m_moe_gemm_8bit, lambda: ragged_m("8bit")),
    "ragged_m_moe_gemm_w8a16": (gemm.ragged_m_moe_gemm_w8a16, lambda: ragged_m("w8a16")),
    "ragged_m_moe_gemm_16bit": (gemm.ragged_m_moe_gemm_16bit, lambda: ragged_m("16bit")),
    "masked_moe_gemm_8bit": (gemm.masked_moe_gemm_8bit, lambda: masked("8bit")),
    "masked_moe_gemm_w8a16": (gemm.masked_moe_gemm_w8a16, lambda: masked("w8a16")),
    "masked_moe_gemm_16bit": (gemm.masked_moe_gemm_16bit, lambda: masked("16bit")),
    "ragged_k_moe_gemm_8bit": (gemm.ragged_k_moe_gemm_8bit, lambda: ragged_k("8bit")),
    "ragged_k_moe_gemm_16bit": (gemm.ragged_k_moe_gemm_16bit, lambda: ragged_k("16bit")),
    "bmm_fp16": (gemm.bmm_fp16, bmm_fp16),
    "bmm_fp8": (gemm.bmm_fp8, bmm_fp8),
    "gemm_fp8_nt_groupwise": (gemm.gemm_fp8_nt_groupwise, groupwise),
    "gemm_w8a16_nt_groupwise": (gemm.gemm_w8a16_nt_groupwise, groupwise_w8a16),
    "fp8_gemm_nt": (deep_gemm.fp8_gemm_nt, deep_dense),
    "m_grouped_contiguous": (deep_gemm.m_grouped_fp8_gemm_nt_contiguous, deep_contiguous),
    "m_grouped_masked": (deep_gemm.m_grouped_fp8_gemm_nt_masked, deep_masked),
    "k_grouped": (deep_gemm.k_grouped_fp8_gemm_tn_contiguous, deep_k_grouped),
    "sparse_mla": (
        sparse_mla.sparse_mla,
        lambda: sparse_attention(indices=Maker(13).integers(-1, 32, T, 7)),
    ),
    "prefix_mla": (
        sparse_mla.sparse_mla,
        lambda: sparse_attention(lengths=i32(0, 1, 32, 5, 9, 16, 17, 31)),
    ),
    "top_k": (top_k, largest),
    "index_topk": (index_topk, indexed),
    "quant_and_write_k": (indexer_cache.quant_and_write_k, write_k),
    "gather_k": (indexer_cache.gather_k, gather),
    "write_latents": (indexer_cache.write_latents, latents),
}

RAGGED_M = [name for name in CALLS if name.startswith("ragged_m")]
MASKED = [name for name in CALLS if name.startswith("masked")]
RAGGED_K = [name for name in CALLS if name.startswith("ragged_k")]


def tensors(arguments: Arguments) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor argument under the name that errors give it."""
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, tuple):
            parts = ((f"{name}[{i}]", part) for i, part in enumerate(value))
            yield from ((key, part) for key, part in parts if isinstance(part, torch.Tensor))


_WRITTEN = ("out", "d", "signal", "output_scale", "out_k", "out_scale")
_WRITTEN_CACHES = ("quant_and_write_k", "write_latents")


def is_written(call: str, name: str) -> bool:
    """Whether the call writes to the tensor of that name; ``bmm_fp8`` divides by its scale."""
    if (call, name) == ("bmm_fp8", "output_scale"):
        return False
    return name in _WRITTEN or (name == "kv_cache" and call in _WRITTEN_CACHES)


def replaced(arguments: Arguments, name: str, value: Any) -> Arguments:
    base, _, index = name.partition("[")
    if index:
        parts = list(arguments[base])
        parts[int(index[:-1])] = value
        value = tuple(parts)
    return {**arguments, base: value}


def expect(
    call: str, arguments: Arguments, kinds: Any, named: str | None, pattern: str = ""
) -> None:
    """The call raises, names the argument, says what it expected and got, and writes nothing."""
    held = [x for _, x in tensors(arguments) if not x.is_meta and x.layout is torch.strided]
    before = [bits(x) for x in held]
    with pytest.raises(kinds) as caught:
        CALLS[call][0](**arguments)
    message = str(caught.value)
    if named is not None:
        assert message.startswith(f"{named}: "), message
    assert re.search(r"^[\w\[\], ]+: (expected .*(, got )?|not available)", message), message
    assert re.search(pattern, message), message
    assert all(torch.equal(bits(x), y) for x, y in zip(held, before, strict=True))

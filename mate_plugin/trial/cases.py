"""One call of each function in the forms that models use, at any size.

A case makes the same numbers on every device, so that what the CPU kernels give, which CI holds
against float64, is what another device has to give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from mate_plugin.kernels import deep_gemm, gemm, index_topk, indexer_cache, moe, quant, topk

E4M3, E5M2, BF16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16
BLOCK = 64  # tokens of a block of the key cache
Outputs = tuple[torch.Tensor, ...]
Mode = Literal["per_token", "psum_expert", "per_expert"]
MODES: tuple[Mode, ...] = ("per_token", "psum_expert", "per_expert")


@dataclass(frozen=True)
class Sizes:
    """tokens: rows in all, or requests; n, k: outputs and inputs of an expert; context: tokens of a
    request; heads: of the indexer, each ``depth`` wide; selected: of the top-k."""

    tokens: int
    experts: int
    n: int
    k: int
    context: int
    heads: int = 32
    depth: int = 128
    selected: int = 64

    @property
    def rows(self) -> int:
        """Of an expert: a multiple of 128, to which the layouts of GPUs align."""
        return max(-(-self.tokens // self.experts) // 128, 1) * 128


SMALL = Sizes(tokens=512, experts=4, n=384, k=512, context=700)
# A DeepSeek-V3 layer's shapes, with few experts so that inputs are made quickly.
LARGE = Sizes(tokens=8192, experts=8, n=4096, k=7168, context=16384, heads=64, selected=2048)


class Maker:
    """Random tensors, made on the CPU and moved to the device."""

    def __init__(self, device: str, seed: int) -> None:
        self.device = device
        self.chance = torch.Generator("cpu").manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
        x = torch.randn(shape, generator=self.chance, device="cpu")
        return (x * 8 if dtype in (E4M3, E5M2) else x).to(dtype).to(self.device)

    def scales(self, *shape: int) -> torch.Tensor:
        """Arbitrary, not powers of two: a scale applied in the wrong place shows."""
        x = torch.rand(shape, generator=self.chance, device="cpu")
        return (x / 64 + 1 / 256).to(self.device)

    def below(self, high: int, *shape: int) -> torch.Tensor:
        x = torch.randint(high, shape, generator=self.chance, device="cpu")
        return x.to(torch.int32).to(self.device)

    def ints(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def filled(self, *shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
        """What is written to: all threes, so that what must stay is seen."""
        return torch.full(shape, 3.0, device=self.device).to(dtype)

    def fp8(self, *shape: int, dtype: torch.dtype = E4M3) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows with a scale per row and 128 columns."""
        *leading, k = shape
        return self.normal(*shape, dtype=dtype), self.scales(*leading, -(-k // 128))

    def weights(self, s: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts with a scale per 128 x 128 block."""
        blocks = (-(-s.n // 128), -(-s.k // 128))
        return self.normal(s.experts, s.n, s.k, dtype=E4M3), self.scales(s.experts, *blocks)

    def cache(self, blocks: int, depth: int) -> torch.Tensor:
        """A paged key cache: rows of FP8, then their scales."""
        codes = self.normal(blocks, BLOCK * depth, dtype=E4M3).view(torch.uint8)
        scales = self.scales(blocks, BLOCK).view(torch.uint8)
        return torch.cat([codes, scales], dim=1).view(blocks, BLOCK, 1, depth + 4)


# What a case calls is run again for its time: it writes the same each time.
Call = Callable[[], Outputs]


def _layout(make: Maker, s: Sizes, mode: Mode) -> torch.Tensor:
    """Experts with as many rows as fit, with fewer, and with none."""
    counts = [(s.rows, s.rows - 37, 1, 0)[e % 4] for e in range(s.experts)]
    if mode == "per_expert":
        return make.ints(counts)
    if mode == "psum_expert":
        return make.ints([e * s.rows + count for e, count in enumerate(counts)])
    each = [[e] * count + [-1] * (s.rows - count) for e, count in enumerate(counts)]
    return make.ints([expert for rows in each for expert in rows])


def _ragged(kind: str, mode: Mode) -> Callable[[Maker, Sizes], Call]:
    def build(make: Maker, s: Sizes) -> Call:
        info, out = _layout(make, s, mode), make.filled(s.experts * s.rows, s.n)
        a8, b8 = make.fp8(s.experts * s.rows, s.k), make.weights(s)
        a16 = make.normal(s.experts * s.rows, s.k)
        if kind == "8bit":
            return lambda: (gemm.ragged_m_moe_gemm_8bit(a8, b8, info, out, mode),)
        if kind == "w8a16":
            return lambda: (gemm.ragged_m_moe_gemm_w8a16(a16, b8, info, out, mode),)
        b16 = make.normal(s.experts, s.n, s.k)
        return lambda: (gemm.ragged_m_moe_gemm_16bit(a16, b16, info, out, mode),)

    return build


def _masked(overlap: bool) -> Callable[[Maker, Sizes], Call]:
    def build(make: Maker, s: Sizes) -> Call:
        a, b = make.fp8(s.experts, s.rows, s.k), make.weights(s)
        counts, out = _layout(make, s, "per_expert"), make.filled(s.experts, s.rows, s.n)

        def call() -> Outputs:
            found = gemm.masked_moe_gemm_8bit(a, b, counts, out, None, s.rows, overlap)
            if not isinstance(found, tuple):
                return (found,)
            # Devices count in blocks of their own; that all of them were done is the same on each.
            rows, signal, block, threshold = found
            done = signal.cpu()[: s.experts * -(-s.rows // block)].view(s.experts, -1)
            wanted = -(-counts.cpu() // block)
            return rows, (done == threshold).sum(1) == wanted

        return call

    return build


def _ragged_k(make: Maker, s: Sizes) -> Call:
    lengths = [(256, 0, 128, 100)[e % 4] for e in range(s.experts)]
    rows, blocks = sum(lengths), sum(-(-length // 128) for length in lengths)
    a = make.normal(rows, s.n, dtype=E4M3), make.scales(blocks, s.n)
    b = make.normal(rows, s.k, dtype=E4M3), make.scales(blocks, s.k)
    info, out = make.ints(lengths), make.filled(s.experts, s.n, s.k, dtype=torch.float32)

    def call() -> Outputs:
        return (gemm.ragged_k_moe_gemm_8bit(a, b, info, out.fill_(3.0)),)

    return call


def _groupwise(make: Maker, s: Sizes) -> Call:
    (a, sa), b = make.fp8(s.tokens, s.k), make.normal(s.n, s.k, dtype=E4M3)
    sb = make.scales(-(-s.n // 128), -(-s.k // 128))
    return lambda: (gemm.gemm_fp8_nt_groupwise(a, b, sa, sb),)


def _groupwise_of_few(make: Maker, s: Sizes) -> Call:
    """As a decode step has it, and long enough for products that are split along k."""
    return _groupwise(make, replace(s, tokens=s.tokens // 32, k=max(s.k, 4096)))


def _bmm_fp8(make: Maker, s: Sizes) -> Call:
    a = make.normal(s.experts, s.rows, s.k, dtype=E4M3)
    b = make.normal(s.experts, s.n, s.k, dtype=E5M2).transpose(1, 2)
    sa, sb = make.scales(1), make.scales(1)
    return lambda: (gemm.bmm_fp8(a, b, sa, sb, BF16),)


def _bmm_fp16(make: Maker, s: Sizes) -> Call:
    a = make.normal(s.experts, s.rows, s.k)
    b = make.normal(s.experts, s.n, s.k).transpose(1, 2)
    return lambda: (gemm.bmm_fp16(a, b, BF16),)


REQUESTS = 8


def _paged(make: Maker, s: Sizes) -> tuple[torch.Tensor, ...]:
    """Requests of several lengths, none among them, over shuffled blocks."""
    blocks = -(-s.context // BLOCK)
    chance = torch.randperm(REQUESTS * blocks, generator=make.chance, device="cpu")
    table = chance.to(torch.int32).view(REQUESTS, blocks).to(make.device)
    lengths = make.ints([(s.context, s.context // 2 + 3, 1, 0)[b % 4] for b in range(REQUESTS)])
    q = make.normal(REQUESTS, 1, s.heads, s.depth, dtype=E4M3)
    weights = make.normal(REQUESTS, s.heads, dtype=torch.float32)
    return q, make.cache(REQUESTS * blocks, s.depth), weights, lengths, table


def _paged_logits(make: Maker, s: Sizes) -> Call:
    q, cache, weights, lengths, table = _paged(make, s)
    schedule = deep_gemm.get_paged_mqa_logits_metadata(lengths, BLOCK, 0)
    arguments = (q, cache, weights, lengths, table, schedule, s.context, True)
    return lambda: (deep_gemm.fp8_paged_mqa_logits(*arguments),)


def _metadata(make: Maker, s: Sizes) -> Call:
    lengths = make.below(s.context, 64)
    return lambda: (deep_gemm.get_paged_mqa_logits_metadata(lengths, BLOCK, 16),)


def _flat_logits(make: Maker, s: Sizes) -> Call:
    rows = REQUESTS * 8
    q = make.normal(rows, s.heads, s.depth, dtype=E4M3)
    kv = make.normal(s.context, s.depth, dtype=E4M3), make.scales(s.context)
    weights = make.normal(rows, s.heads, dtype=torch.float32)
    first, end = make.below(s.context // 2, rows), make.below(s.context, rows)
    return lambda: (deep_gemm.fp8_mqa_logits(q, kv, weights, first, end, True),)


def _index_topk(make: Maker, s: Sizes) -> Call:
    q, cache, weights, lengths, table = _paged(make, s)
    starts = make.ints(list(range(REQUESTS + 1)))
    arguments = (q[:, 0], cache, weights, starts, lengths, table, s.selected)
    return lambda: (index_topk.index_topk(*arguments, budget=1 << 28),)


def _top_k(make: Maker, s: Sizes) -> Call:
    logits = make.normal(64, s.context, dtype=torch.float32)
    lengths = make.below(s.context, 64)
    return lambda: (topk.top_k(logits, lengths, s.selected),)


def _write_keys(make: Maker, s: Sizes) -> Call:
    keys, slots = make.normal(s.context, s.depth), make.ints(list(range(s.context))[::-1])
    cache = make.cache(-(-s.context // BLOCK), s.depth)

    def call() -> Outputs:
        indexer_cache.quant_and_write_k(keys, cache, slots)
        return (cache,)

    return call


def _gather_keys(make: Maker, s: Sizes) -> Call:
    _, cache, _, lengths, table = _paged(make, s)
    return lambda: indexer_cache.gather_k(cache, table, lengths)


def _quantise(make: Maker, s: Sizes) -> Call:
    x = make.normal(s.tokens, s.k)
    return lambda: quant.per_token_group_quant_fp8(x)


def _silu_quantise(make: Maker, s: Sizes) -> Call:
    x = make.normal(s.tokens, 2 * s.n)
    return lambda: quant.silu_and_mul_quant_fp8(x)


TOPK = 2


def _route(make: Maker, s: Sizes) -> Call:
    ids = make.below(s.experts, s.tokens, TOPK)

    def call() -> Outputs:
        found = moe.route(ids, s.experts, alignment=128)
        return tuple(x for x in found if isinstance(x, torch.Tensor))

    return call


def _permute(make: Maker, s: Sizes) -> Call:
    ids, hidden = make.below(s.experts, s.tokens, TOPK), make.normal(s.tokens, s.k)
    routing = moe.route(ids, s.experts, alignment=1)
    return lambda: (moe.permute(hidden, routing, TOPK),)


def _unpermute(make: Maker, s: Sizes) -> Call:
    ids, weights = make.below(s.experts, s.tokens, TOPK), make.scales(s.tokens, TOPK)
    routing = moe.route(ids, s.experts, alignment=1)
    rows = make.normal(routing.row_of.shape[0], s.k)
    out = make.filled(s.tokens, s.k)
    return lambda: (moe.unpermute(rows, routing, weights, out),)


@dataclass(frozen=True)
class Case:
    """A call by name; ``op`` is the compiled entry whose implementations are looked at."""

    name: str
    op: str
    build: Callable[[Maker, Sizes], Call]

    def on(self, device: str, sizes: Sizes) -> Call:
        """The call with its tensors on a device."""
        return self.build(Maker(device, sum(self.name.encode())), sizes)


CASES = (
    *(
        Case(f"ragged_m_moe_gemm_{kind}, {mode}", "ragged_m_gemm", _ragged(kind, mode))
        for kind in ("8bit", "16bit", "w8a16")
        for mode in MODES
    ),
    Case("masked_moe_gemm_8bit", "masked_gemm", _masked(False)),
    Case("masked_moe_gemm_8bit, overlap", "masked_gemm", _masked(True)),
    Case("ragged_k_moe_gemm_8bit", "ragged_k_gemm", _ragged_k),
    Case("gemm_fp8_nt_groupwise", "batched_gemm", _groupwise),
    Case("gemm_fp8_nt_groupwise, few rows", "batched_gemm", _groupwise_of_few),
    Case("bmm_fp8", "batched_gemm", _bmm_fp8),
    Case("bmm_fp16", "batched_gemm", _bmm_fp16),
    Case("get_paged_mqa_logits_metadata", "paged_mqa_metadata", _metadata),
    Case("fp8_paged_mqa_logits", "paged_mqa_logits", _paged_logits),
    Case("fp8_mqa_logits", "mqa_logits", _flat_logits),
    Case("index_topk", "index_topk", _index_topk),
    Case("top_k", "top_k", _top_k),
    Case("quant_and_write_k", "quant_and_write_k", _write_keys),
    Case("gather_k", "gather_k", _gather_keys),
    Case("per_token_group_quant_fp8", "group_quant_fp8", _quantise),
    Case("silu_and_mul_quant_fp8", "silu_and_mul_quant_fp8", _silu_quantise),
    Case("route", "moe_route", _route),
    Case("permute", "moe_permute", _permute),
    Case("unpermute", "moe_unpermute", _unpermute),
)

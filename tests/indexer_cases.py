"""Random indexer problems and the comparison with the oracle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from devices import seeded, tensor_core_slack

from mate_plugin.kernels.mqa_logits import (
    fp8_mqa_logits,
    fp8_paged_mqa_logits,
    get_paged_mqa_logits_metadata,
)
from mate_plugin.kernels.reference import indexer as oracle

UNIT = 2.0**-24  # half a unit in the last place of float32 at 1
E4M3_NAN = 0x7F


def rounding_bound(
    reference: torch.Tensor, magnitude: torch.Tensor, depth: int, heads: int
) -> torch.Tensor:
    """Largest error of float32 sums over ``depth`` and ``heads``, from the sum of magnitudes."""
    relative = (depth + heads + 4) * UNIT + tensor_core_slack(reference)
    return relative * magnitude + 1e-37 + UNIT * reference.abs()


def assert_close(
    out: torch.Tensor, reference: torch.Tensor, magnitude: torch.Tensor, depth: int, heads: int
) -> None:
    """Equal where not finite, within the rounding bound elsewhere, and close as a whole."""
    wide = out.double()
    assert torch.equal(wide.isnan(), reference.isnan())
    infinite = reference.isinf()
    assert torch.equal(wide[infinite], reference[infinite])
    finite = reference.isfinite()
    assert bool(wide[finite].isfinite().all())
    error = (wide - reference).abs()[finite]
    bound = rounding_bound(reference, magnitude, depth, heads)[finite]
    assert bool((error <= bound).all()), f"worst {(error / bound).max():.3g} of the bound"
    x, y = wide[finite], reference[finite]
    energy = (x * x + y * y).sum()
    if energy > 0:
        assert 1 - 2 * (x * y).sum() / energy < 1e-6


def random_fp8(
    generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float8_e4m3fn
) -> torch.Tensor:
    return torch.randn(*shape, generator=generator).to(dtype)


@dataclass
class PagedCase:
    """Arguments of ``fp8_paged_mqa_logits``; blocks that no visible token lies in hold NaN."""

    q: torch.Tensor
    cache: torch.Tensor
    weights: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor
    max_context_len: int

    def run(self, clean_logits: bool = True, **options: object) -> torch.Tensor:
        schedule = get_paged_mqa_logits_metadata(self.context_lens, self.cache.shape[1], 3)
        return fp8_paged_mqa_logits(
            self.q,
            self.cache,
            self.weights,
            self.context_lens,
            self.block_table,
            schedule,
            self.max_context_len,
            clean_logits,
            **options,
        )

    def reference(self, clean_value: float = float("-inf")) -> torch.Tensor:
        return oracle.paged_mqa_logits(
            self.q,
            self.cache,
            self.weights,
            self.context_lens,
            self.block_table,
            self.max_context_len,
            clean_value,
        )

    def visible(self) -> torch.Tensor:
        """Which logits are defined, (batch * next_n, max_context_len)."""
        lens = oracle.visible_lens(self.context_lens, self.q.shape[1]).reshape(-1, 1)
        return torch.arange(self.max_context_len) < lens

    def check(self, **options: object) -> None:
        codes, scales = oracle.split_cache(self.cache)
        plain = PagedCase(
            self.q.float().abs(),
            fuse_cache(codes.float().abs().to(codes.dtype), scales.abs()),
            self.weights.abs(),
            self.context_lens,
            self.block_table,
            self.max_context_len,
        )
        heads, depth = self.q.shape[2:]
        assert_close(self.run(**options), self.reference(), plain.reference(0.0), depth, heads)


def fuse_cache(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The K cache (num_blocks, block, 1, D + 4) of codes (num_blocks, block, D) and scales."""
    num_blocks, block, depth = codes.shape
    parts = [codes.view(torch.uint8), scales.contiguous().view(torch.uint8)]
    flat = torch.cat([part.reshape(num_blocks, -1) for part in parts], dim=1)
    return flat.view(num_blocks, block, 1, depth + 4)


def paged_case(
    seed: int,
    lens: list[int] | list[list[int]],
    next_n: int = 1,
    heads: int = 4,
    depth: int = 32,
    block: int = 64,
    dtype: torch.dtype = torch.float8_e4m3fn,
    spare_columns: int = 0,
) -> PagedCase:
    generator = seeded(seed)
    context_lens = torch.tensor(lens, dtype=torch.int32)
    batch = len(lens)
    seen = oracle.visible_lens(context_lens, next_n).clamp(min=0).amax(dim=1).tolist()
    blocks = [-(-length // block) for length in seen]
    width = max(blocks, default=0) + spare_columns
    num_blocks = sum(blocks) + 2
    free = torch.randperm(num_blocks, generator=generator).tolist()
    codes = torch.full((num_blocks, block, depth), E4M3_NAN, dtype=torch.uint8)
    codes = codes.view(torch.float8_e4m3fn)
    scales = torch.full((num_blocks, block), float("nan"))
    block_table = torch.full((batch, width), -1, dtype=torch.int32)
    for b in range(batch):
        for column in range(blocks[b]):
            page = free.pop()
            block_table[b, column] = page
            count = min(block, seen[b] - column * block)
            codes[page, :count] = random_fp8(generator, count, depth)
            scales[page, :count] = torch.rand(count, generator=generator) + 0.01
    return PagedCase(
        random_fp8(generator, batch, next_n, heads, depth, dtype=dtype),
        fuse_cache(codes, scales),
        torch.randn(batch * next_n, heads, generator=generator),
        context_lens,
        block_table,
        max(seen, default=0) + spare_columns * 7,
    )


@dataclass
class FlatCase:
    """Arguments of ``fp8_mqa_logits``."""

    q: torch.Tensor
    kv: tuple[torch.Tensor, torch.Tensor]
    weights: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor

    def run(self, **options: object) -> torch.Tensor:
        return fp8_mqa_logits(self.q, self.kv, self.weights, self.start, self.end, **options)

    def reference(self, max_seqlen_k: int = 0) -> torch.Tensor:
        return oracle.mqa_logits(self.q, self.kv, self.weights, self.start, self.end, max_seqlen_k)

    def magnitude(self, max_seqlen_k: int = 0) -> torch.Tensor:
        k, k_scale = self.kv
        kv = (k.float().abs(), k_scale.abs())
        return oracle.mqa_logits(
            self.q.float().abs(), kv, self.weights.abs(), self.start, self.end, max_seqlen_k, 0.0
        )

    def check(self, **options: object) -> None:
        heads, depth = self.q.shape[1:]
        assert_close(self.run(**options), self.reference(), self.magnitude(), depth, heads)


def flat_case(
    seed: int,
    rows: int,
    tokens: int,
    heads: int = 4,
    depth: int = 32,
    q_dtype: torch.dtype = torch.float8_e4m3fn,
    k_dtype: torch.dtype = torch.float8_e4m3fn,
) -> FlatCase:
    generator = seeded(seed)
    ends = torch.randint(0, tokens + 1, (2, rows), generator=generator, dtype=torch.int32)
    return FlatCase(
        random_fp8(generator, rows, heads, depth, dtype=q_dtype),
        (
            random_fp8(generator, tokens, depth, dtype=k_dtype),
            torch.rand(tokens, generator=generator) + 0.01,
        ),
        torch.randn(rows, heads, generator=generator),
        ends.amin(dim=0),
        ends.amax(dim=0),
    )

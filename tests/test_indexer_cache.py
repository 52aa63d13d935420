"""Writing and reading paged caches, against plain torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from devices import seeded, tensor_core_slack
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from mate_plugin.kernels import library
from mate_plugin.kernels.checks import set_index_checks
from mate_plugin.kernels.indexer_cache import gather_k, quant_and_write_k, write_latents
from mate_plugin.kernels.mqa_logits import fp8_paged_mqa_logits, get_paged_mqa_logits_metadata
from mate_plugin.kernels.reference import indexer as indexer_oracle
from mate_plugin.kernels.reference import indexer_cache as oracle

BF16, F16, F32, E4M3 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
INF, NAN = float("inf"), float("nan")
quick = settings(max_examples=examples(50), deadline=None)
seeds = st.integers(0, 2**31 - 1)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def bits(x: torch.Tensor) -> torch.Tensor:
    """Bytes of the last dimension."""
    return x.view(torch.uint8)


def empty_cache(num_blocks: int, block: int, depth: int, gap: int = 0) -> torch.Tensor:
    """Cache (num_blocks, block, depth + 4) whose blocks are ``gap`` bytes apart, all bytes 9."""
    pitch = block * (depth + 4) + gap
    room = torch.full((num_blocks, pitch), 9, dtype=torch.uint8)
    return room.as_strided((num_blocks, block, depth + 4), (pitch, depth + 4, 1))


def some_slots(generator: torch.Generator, count: int, slots: int) -> torch.Tensor:
    """Different slots, some of them replaced by numbers that are none."""
    chosen = torch.randperm(slots + count, generator=generator)[:count]
    none = torch.tensor([-1, -7, slots, slots + 100])
    return torch.where(chosen < slots, chosen, none[chosen % 4])


@quick
@given(
    seed=seeds,
    rows=st.integers(0, 40),
    spare=st.integers(0, 3),
    depth=st.sampled_from([16, 32, 48, 64, 128]),
    block=st.sampled_from([16, 64]),
    gap=st.sampled_from([0, 12]),
    dtype=st.sampled_from([BF16, F16, F32]),
    slot_dtype=st.sampled_from([torch.int32, torch.int64]),
    ue8m0=st.booleans(),
    headed=st.booleans(),
)
def test_keys_are_written(
    seed, rows, spare, depth, block, gap, dtype, slot_dtype, ue8m0, headed
) -> None:
    generator = seeded(seed)
    size = torch.exp(torch.randn(rows + spare, 1, generator=generator) * 6)
    k = (torch.randn(rows + spare, depth, generator=generator) * size).clamp(-6e4, 6e4).to(dtype)
    wide = torch.full((rows + spare, depth + 9), NAN, dtype=dtype)
    wide[:, 5 : depth + 5] = k
    slots = some_slots(generator, rows, 3 * block).to(slot_dtype)
    strided = slots.repeat_interleave(2)[::2]
    cache = empty_cache(3, block, depth, gap)
    wanted = oracle.quant_and_write_k(k, cache, slots, ue8m0)
    target = cache.unsqueeze(2) if headed else cache
    assert quant_and_write_k(wide[:, 5 : depth + 5], target, strided, ue8m0=ue8m0) is None
    assert torch.equal(cache, wanted)
    if gap:
        between = cache.as_strided((3, gap), (cache.stride(0), 1), block * (depth + 4))
        assert between.eq(9).all()


def codes_and_scales(k: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales that the rows of ``k`` (at most 64) get."""
    cache = empty_cache(1, 64, k.shape[1])
    quant_and_write_k(k, cache, torch.arange(len(k)), **options)
    codes, scales = indexer_oracle.split_cache(cache.unsqueeze(2))
    return codes[0, : len(k)], scales[0, : len(k)]


def test_scales_are_powers_of_two_that_just_hold_the_largest_key():
    largest = torch.tensor([448.0, 449.0, 447.0, 224.0, 1.0, 1e-3, 1e-30, 0.0])
    k = largest[:, None] * torch.cat([torch.ones(1), torch.linspace(-1, 1, 31)])
    codes, scales = codes_and_scales(k)
    amax = largest.clamp(min=1e-4).double()
    assert torch.equal(scales.double(), torch.exp2(torch.ceil(torch.log2(amax / 448))))
    assert scales[:4].tolist() == [1.0, 2.0, 1.0, 0.5]
    error = (codes.float() * scales[:, None] - k).abs()
    assert (error <= k.abs() / 16 + scales[:, None] * 2.0**-10).all()
    _, plain = codes_and_scales(k, ue8m0=False)
    assert torch.equal(plain, largest.clamp(min=1e-4) / torch.tensor(448.0))


def test_nan_and_infinity_stay_in_their_row():
    k = torch.randn(4, 32)
    clean_codes, clean_scales = codes_and_scales(k)
    k[1, 7] = NAN
    k[2, 3] = -INF
    codes, scales = codes_and_scales(k)
    assert codes[1].float().isnan().all()
    assert scales[1].isnan()
    assert scales[2] == INF
    assert codes[2].float().isnan().nonzero().flatten().tolist() == [3]
    assert torch.equal(bits(codes)[::3], bits(clean_codes)[::3])
    assert torch.equal(scales[::3], clean_scales[::3])


@pytest.mark.usefixtures("four_threads")
def test_threads_do_not_change_what_is_written():
    k, slots = torch.randn(3000, 64, dtype=BF16), torch.randperm(4096)[:3000]
    caches = [empty_cache(64, 64, 64) for _ in range(2)]
    quant_and_write_k(k, caches[0], slots, num_mp=1)
    quant_and_write_k(k, caches[1], slots)
    assert torch.equal(*caches)
    table = torch.randperm(64).int().view(2, 32)
    lens = torch.tensor([2048, 1500], dtype=torch.int32)
    once, many = gather_k(caches[0], table, lens, num_mp=1), gather_k(caches[0], table, lens)
    assert torch.equal(bits(once[0]), bits(many[0]))
    assert torch.equal(bits(many[0]), oracle.gather_k(caches[0], table, lens)[0])


@quick
@given(
    seed=seeds,
    lens=st.lists(st.integers(-2, 90), max_size=5),
    depth=st.sampled_from([16, 32, 128]),
    block=st.sampled_from([16, 64]),
    gap=st.sampled_from([0, 12]),
)
def test_keys_are_gathered(seed, lens, depth, block, gap):
    generator = seeded(seed)
    cache = empty_cache(7, block, depth, gap)
    cache.copy_(torch.randint(0, 127, cache.shape, generator=generator))
    # Some blocks do not exist, some lengths pass the table.
    table = torch.randint(-1, 9, (len(lens), 4), generator=generator, dtype=torch.int32)
    table[table == 8] = 2**31 - 1
    strided = torch.tensor(lens, dtype=torch.int32).repeat_interleave(2)[::2]
    wanted_k, wanted_scale = oracle.gather_k(cache, table[:, 1:], strided)
    k, scale = gather_k(cache, table[:, 1:], strided)
    assert k.dtype == E4M3
    assert torch.equal(bits(k), wanted_k)
    assert torch.equal(scale, wanted_scale)

    rows = len(wanted_k)
    for room in (rows + 3, max(rows - 5, 0)):
        wide = torch.full((room, depth + 8), 9, dtype=torch.uint8)
        out_k = wide.view(E4M3)[:, 4 : depth + 4]
        out_scale = torch.full((room,), 7.0)
        headed = cache.unsqueeze(2)
        got = gather_k(headed, table[:, 1:], strided, out_k=out_k, out_scale=out_scale)
        assert got[0] is out_k
        assert got[1] is out_scale
        written = min(rows, room)
        assert torch.equal(bits(out_k)[:written], wanted_k[:written])
        assert torch.equal(out_scale[:written], wanted_scale[:written])
        assert wide[written:].eq(9).all()
        assert wide[:, :4].eq(9).all()
        assert wide[:, depth + 4 :].eq(9).all()
        assert out_scale[written:].eq(7).all()


@pytest.mark.parametrize("requests", [300, 1200])
def test_keys_of_many_requests_are_gathered(requests):
    generator = seeded(requests)
    cache = empty_cache(20, 16, 32)
    cache.copy_(torch.randint(0, 127, cache.shape, generator=generator))
    table = torch.randint(0, 20, (requests, 2), generator=generator, dtype=torch.int32)
    lens = torch.randint(0, 33, (requests,), generator=generator, dtype=torch.int32)
    wanted_k, wanted_scale = oracle.gather_k(cache, table, lens)
    k, scale = gather_k(cache, table, lens)
    assert torch.equal(bits(k), wanted_k)
    assert torch.equal(scale, wanted_scale)


def test_one_output_sets_the_rows_of_the_other():
    cache = empty_cache(2, 16, 32)
    arguments = cache, torch.tensor([[1, 0]], dtype=torch.int32), torch.tensor([3]).int()
    assert gather_k(*arguments, out_scale=torch.zeros(9))[0].shape == (9, 32)
    assert gather_k(*arguments, out_k=torch.zeros(9, 32).to(E4M3))[1].shape == (9,)


def test_there_and_back_through_the_scores():
    """What is written is what the paged scores read."""
    k, table = torch.randn(100, 64, dtype=BF16), torch.tensor([[2, 0]], dtype=torch.int32)
    position = torch.arange(100)
    cache = empty_cache(3, 64, 64).unsqueeze(2)
    quant_and_write_k(k, cache, table[0].long()[position // 64] * 64 + position % 64)
    lens = torch.tensor([100], dtype=torch.int32)
    got_k, got_scale = gather_k(cache, table, lens)
    error = (got_k.float() * got_scale[:, None] - k.float()).abs()
    assert (error <= k.float().abs() / 16 + got_scale[:, None] * 2.0**-10).all()
    q, weights = torch.randn(1, 1, 4, 64).to(E4M3), torch.randn(1, 4)
    schedule = get_paged_mqa_logits_metadata(lens, 64, 1)
    logits = fp8_paged_mqa_logits(q, cache, weights, lens, table, schedule, 100, True)
    wanted = indexer_oracle.scores(q[0], got_k, got_scale, weights)
    close = 1e-4 + 100 * tensor_core_slack(logits)
    assert torch.allclose(logits.double(), wanted, rtol=1e-4, atol=close)


@quick
@given(
    seed=seeds,
    rows=st.integers(0, 30),
    spare=st.integers(0, 2),
    widths=st.sampled_from([(16, 16), (512, 64), (7, 3), (5, 0)]),
    block=st.sampled_from([1, 16, 100]),
    dtype=st.sampled_from([BF16, F16]),
)
def test_latents_are_written(seed, rows, spare, widths, block, dtype):
    generator = seeded(seed)
    rank, rope_dim = widths
    both = torch.randn(rows + spare, rank + rope_dim + 6, generator=generator).to(dtype)
    latent, rope = both[:, 1 : rank + 1], both[:, rank + 3 : rank + 3 + rope_dim]
    slots = some_slots(generator, rows, 40 * block)
    room = torch.full((40, block, 2, rank + rope_dim), 9.0, dtype=dtype)
    cache = room[:, :, 1]
    wanted = oracle.write_latents(latent, rope, cache, slots)
    assert write_latents(latent, rope, cache, slots) is None
    assert torch.equal(cache, wanted)
    assert room[:, :, 0].eq(9).all()
    packed = torch.full_like(cache, 9, memory_format=torch.contiguous_format)
    write_latents(latent, rope, packed, slots.int())
    assert torch.equal(packed, wanted)


I32 = torch.int32


def write_arguments() -> dict:
    return {
        "k": torch.randn(4, 32),
        "kv_cache": empty_cache(2, 16, 32),
        "slot_mapping": torch.tensor([3, -1, 31]),
    }


def gather_arguments() -> dict:
    return {
        "kv_cache": empty_cache(2, 16, 32),
        "block_table": torch.tensor([[1, 0]], dtype=I32),
        "context_lens": torch.tensor([20], dtype=I32),
        "out_k": torch.zeros(20, 32).to(E4M3),
        "out_scale": torch.full((20,), 7.0),
    }


def latent_arguments() -> dict:
    return {
        "latent": torch.randn(4, 8, dtype=BF16),
        "rope": torch.randn(4, 2, dtype=BF16),
        "kv_cache": torch.full((2, 3, 10), 9.0, dtype=BF16),
        "slot_mapping": torch.tensor([3, -1, 5]),
    }


WRITE, GATHER, LATENTS = (
    (quant_and_write_k, write_arguments),
    (gather_k, gather_arguments),
    (write_latents, latent_arguments),
)
WRONG = [
    (*WRITE, "k", torch.zeros(4, 24), ValueError, "^kv_cache: expected shape"),
    (*WRITE, "ue8m0", 1, TypeError, "^ue8m0: expected a bool, got int 1"),
    (*WRITE, "num_mp", 0, ValueError, "^num_mp: expected at least 1, got 0"),
    (*WRITE, "kv_cache", empty_cache(2, 24, 32), ValueError, "^kv_cache: block size: .*power of"),
    (*WRITE, "kv_cache", empty_cache(2, 16, 32, 2), ValueError, r"^kv_cache: .*of 4, got 578"),
    (*WRITE, "kv_cache", empty_cache(2, 32, 32)[:, ::2], ValueError, "^kv_cache: .*each block to"),
    (*WRITE, "kv_cache", empty_cache(2, 16, 32).view(2, 8, 2, 36), ValueError, "^kv_cache: .*sha"),
    (*WRITE, "slot_mapping", torch.arange(5), ValueError, "^slot_mapping: .* most 4 slots.*got 5"),
    (*WRITE, "slot_mapping", torch.zeros(3), TypeError, "^slot_mapping: .*got torch.float32"),
    (*GATHER, "kv_cache", empty_cache(2, 16, 24), ValueError, "^kv_cache: .*a multiple of 16"),
    (*GATHER, "kv_cache", empty_cache(2, 16, 0), ValueError, "^kv_cache: .*a multiple of 16"),
    (*GATHER, "kv_cache", empty_cache(2, 32, 32)[:, ::2], ValueError, "^kv_cache: .*each block"),
    (*GATHER, "out_k", torch.zeros(20, 32), TypeError, "^out_k: expected dtype .*float8_e4m3fn"),
    (*GATHER, "out_scale", torch.zeros(19), ValueError, r"^out_scale: expected shape .*\(20,\)"),
    (*LATENTS, "rope", torch.zeros(4, 2).half(), TypeError, "^rope: expected dtype torch.bfloat16"),
    (*LATENTS, "latent", torch.zeros(4, 8), TypeError, "^latent: .*bfloat16 or torch.float16, got"),
    (*LATENTS, "kv_cache", torch.zeros(2, 3, 9, dtype=BF16), ValueError, r"^kv_cache: .*RANK \+ R"),
    (*LATENTS, "slot_mapping", torch.arange(5), ValueError, "^slot_mapping: .*4 slots.*got 5"),
]
CONTENTS = [
    (*WRITE, "slot_mapping", torch.tensor([0, 32]), "^slot_mapping: .*below 32.*got 32 at row 1"),
    (*WRITE, "slot_mapping", torch.tensor([7, -1, 7]), "^slot_mapping: .*got 7 again at row 2"),
    (*LATENTS, "slot_mapping", torch.tensor([0, 6]), "^slot_mapping: .*below 6.*got 6 at row 1"),
    (*LATENTS, "slot_mapping", torch.tensor([2, 2]), "^slot_mapping: .*got 2 again at row 1"),
    (*GATHER, "context_lens", torch.tensor([33]).int(), "^block_table: .*got 2 columns"),
    (
        *GATHER,
        "context_lens",
        torch.tensor([21]).int(),
        "^out_k: .*for 21 rows, got 20",
    ),
    (*GATHER, "block_table", torch.tensor([[1, 2]]).int(), r"^block_table: .*got 2 at column 1"),
]


def unchanged(arguments: dict, before: dict) -> bool:
    tensors = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
    return all(torch.equal(bits(arguments[name]), before[name]) for name in tensors)


def refuses(function, build, name, value, error, message) -> None:
    arguments = {**build(), name: value}
    before = {key: bits(x).clone() for key, x in arguments.items() if isinstance(x, torch.Tensor)}
    with pytest.raises(error, match=message):
        function(**arguments)
    assert unchanged(arguments, before)


@pytest.mark.parametrize(("function", "build", "name", "value", "error", "message"), WRONG)
def test_wrong_arguments(function, build, name, value, error, message):
    function(**build())
    refuses(function, build, name, value, error, message)


@pytest.mark.parametrize(("function", "build", "name", "value", "message"), CONTENTS)
def test_wrong_contents_are_found_where_checks_are_on(function, build, name, value, message):
    before = set_index_checks(True)
    try:
        function(**build())
        refuses(function, build, name, value, ValueError, message)
    finally:
        set_index_checks(before)
    function(**{**build(), name: value})


def test_calls_are_counted():
    before = {row["op"]: row["calls"] for row in library.counters()}
    for function, build in (WRITE, GATHER, LATENTS):
        function(**build())
    after = {row["op"]: row["calls"] for row in library.counters()}
    for op in ("quant_and_write_k", "gather_k", "write_latents"):
        assert after[op] == before.get(op, 0) + 1

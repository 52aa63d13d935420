"""Tests of graphs on the default device: what was captured once computes with whatever the tensors
hold at a replay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from device_calls import Call, each_call
from devices import captured, seeded
from gemm_cases import bits

from mate_plugin.kernels import deep_gemm, gemm, moe, quant
from mate_plugin.kernels.index_topk import index_topk
from mate_plugin.kernels.indexer_cache import quant_and_write_k
from mate_plugin.kernels.topk import top_k

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
Tensors = tuple[torch.Tensor, ...]


@each_call
def test_a_replay_does_what_the_call_does(call: str) -> None:
    eager, replayed = Call(call), Call(call)
    eager.run()
    graph, _ = captured(replayed.run)
    for _ in range(2):
        replayed.reset()
        graph.replay()
        replayed.assert_wrote_like(eager)


# Turned round they are as valid as before.
TURNED = (
    *("ragged_tokens_info", "masked_tokens_info", "masked_m", "grouped_layout"),
    *("lengths", "starts", "context_lens", "slot_mapping"),
)


def turn(name: str, x: torch.Tensor) -> None:
    if name in TURNED:
        x.copy_(x.flip(0))


@each_call
def test_a_replay_reads_index_tensors_anew(call: str) -> None:
    if call == "k_grouped":
        pytest.skip("its counts are arguments on the host too")
    eager, replayed = Call(call, turn), Call(call)
    eager.run()
    graph, _ = captured(replayed.run)
    replayed.reset()
    replayed.change(turn)
    graph.replay()
    replayed.assert_wrote_like(eager)


def replays(run: Callable[[], Tensors], changes: list[Callable[[], object]]) -> None:
    """``run`` captured once gives the bits of an eager call after each change of its inputs."""
    run()
    outputs: list[Tensors] = []
    graph, _ = captured(lambda: outputs.append(run()))
    for change in changes:
        change()
        want = run()
        for x in outputs[0]:
            x.view(torch.uint8).fill_(7)
        graph.replay()
        for got, expected in zip(outputs[0], want, strict=True):
            assert torch.equal(bits(got), bits(expected))


def fp8_weights(g: torch.Generator, experts: int, n: int, k: int) -> Tensors:
    codes = torch.randn(experts, n, k, generator=g).to(E4M3)
    return codes, torch.rand(experts, n // 128, k // 128, generator=g) + 0.5


@pytest.mark.parametrize("mode", ["per_token", "psum_expert", "per_expert", "masked"])
def test_a_whole_layer_under_changed_routing(mode: str) -> None:
    g = seeded(1)
    tokens, topk, experts, size, inner = 200, 4, 16, 512, 256
    hidden = torch.randn(tokens, size, generator=g).to(BF16)
    weights = torch.rand(tokens, topk, generator=g)
    w13, w2 = fp8_weights(g, experts, 2 * inner, size), fp8_weights(g, experts, size, inner)
    ids = torch.randint(-1, experts, (tokens, topk), generator=g)
    masked = mode == "masked"
    align = 128 if mode in ("per_token", "psum_expert") else 1

    def product(rows: Tensors, weight: Tensors, routing: moe.Routing, n: int) -> torch.Tensor:
        # Rows of no pair stay as they are: equal bits need them equal.
        out = torch.zeros(*rows[0].shape[:-1], n, dtype=BF16)
        if masked:
            return gemm.masked_moe_gemm_8bit(rows, weight, routing.counts, out)
        infos = {"psum_expert": routing.ends, "per_token": routing.expert_of_row}
        info = infos.get(mode, routing.counts)
        return gemm.ragged_m_moe_gemm_8bit(
            rows, weight, info, out, gemm_mode=mode, alignment_m=align
        )

    def layer() -> Tensors:
        layout = {"capacity": tokens} if masked else {"alignment": align}
        routing = moe.route(ids, experts, **layout)
        codes, scales = quant.per_token_group_quant_fp8(hidden)
        shape = (routing.row_of.shape[0],)
        rows = (
            moe.permute(codes, routing, topk, out=torch.zeros(*shape, size).to(E4M3)),
            moe.permute(scales, routing, topk, out=torch.zeros(*shape, size // 128)),
        )
        if masked:
            rows = tuple(x.unflatten(0, (experts, -1)) for x in rows)
        between = product(rows, w13, routing, 2 * inner)
        entering = quant.silu_and_mul_quant_fp8(between, round_first=True)
        leaving = product(entering, w2, routing, size)
        leaving = leaving.flatten(0, -2)
        out = moe.unpermute(leaving, routing, weights, torch.empty(tokens, size, dtype=BF16))
        return out, routing.counts

    def route_anew(first: int, last: int) -> Callable[[], object]:
        return lambda: ids.copy_(torch.randint(first, last, ids.shape, generator=g))

    replays(layer, [route_anew(-1, experts), route_anew(0, 2), route_anew(5, 6), route_anew(-1, 0)])


@pytest.mark.parametrize("next_n", [1, 2])
def test_decoding_under_changed_lengths(next_n: int) -> None:
    g = seeded(2)
    batch, heads, depth, block, blocks = 4, 64, 128, 64, 40
    q = torch.randn(batch, next_n, heads, depth, generator=g).to(E4M3)
    weights = torch.randn(batch * next_n, heads, generator=g)
    keys = torch.randn(blocks * block, depth, generator=g).to(BF16)
    cache = torch.zeros(blocks, block, 1, depth + 4, dtype=torch.uint8)
    slots = torch.arange(blocks * block)
    table = torch.randperm(blocks, generator=g).to(torch.int32).view(batch, -1)
    lens = torch.tensor([5, 600, 64, 300], dtype=torch.int32)
    most = table.shape[1] * block
    rows = torch.arange(0, batch * next_n + 1, next_n, dtype=torch.int32)

    def step() -> Tensors:
        quant_and_write_k(keys, cache, slots)
        schedule = deep_gemm.get_paged_mqa_logits_metadata(lens, block)
        logits = deep_gemm.fp8_paged_mqa_logits(
            q, cache, weights, lens, table, schedule, most, True
        )
        ends = (lens[:, None] - next_n + 1 + torch.arange(next_n)).flatten().to(torch.int32)
        best = top_k(logits, ends, 128)
        flat = q.flatten(0, 1)
        fused = index_topk(flat, cache, weights, rows, lens, table, 128, budget=1 << 24)
        return schedule, logits, best, fused

    def become(*values: int) -> Callable[[], object]:
        return lambda: lens.copy_(torch.tensor(values, dtype=torch.int32))

    def write_anew() -> None:
        keys.copy_(torch.randn(keys.shape, generator=g))

    replays(step, [become(640, 1, 3, 200), become(0, 0, 2, -1), write_anew, become(*[most] * 4)])

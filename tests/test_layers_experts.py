"""The engine-free MoE layer against a float64 oracle."""

from __future__ import annotations

import pytest
import torch
from layer_oracle import MoeWeights, moe

from mate_plugin.layers.experts import Experts
from mate_plugin.layers.plan import MODES, from_key, plan_experts

E, H, I = 6, 200, 160  # noqa: E741
# bf16 keeps 8 bits; a row is a sum of a few rounded terms.
CLOSE = {"rtol": 2e-2, "atol": 2e-2}


@pytest.fixture(scope="module")
def weights() -> MoeWeights:
    return MoeWeights(E, H, I)


def routing(tokens: int, topk: int, num_experts: int = E, seed: int = 0):
    chance = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, H, generator=chance).to(torch.bfloat16)
    ids = torch.stack([torch.randperm(num_experts, generator=chance)[:topk] for _ in range(tokens)])
    probs = torch.rand(tokens, topk, generator=chance)
    return hidden, probs, ids.reshape(tokens, topk)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), expected, **CLOSE)


@pytest.mark.parametrize("activation", ["bf16", "fp8"])
@pytest.mark.parametrize("tokens", [1, 2, 7, 150])
def test_agrees_with_the_oracle(weights, tokens, activation):
    hidden, probs, ids = routing(tokens, 3, seed=tokens)
    out = Experts(*weights.stored, activation=activation).apply(hidden, probs, ids)
    # Rounding to FP8 turns a difference of one bf16 step into one of a sixteenth of a term.
    close(out, moe(weights, hidden, probs, ids, fp8=activation == "fp8"))


def test_fp8_rounds_where_the_oracle_does(weights):
    """Far closer to the oracle that rounds than to the one that does not, and the reverse."""
    hidden, probs, ids = routing(64, 2, seed=4)
    for activation in ("bf16", "fp8"):
        out = Experts(*weights.stored, activation=activation).apply(hidden, probs, ids).double()
        alike, other = (
            (out - moe(weights, hidden, probs, ids, fp8=fp8)).abs().mean()
            for fp8 in (activation == "fp8", activation != "fp8")
        )
        assert alike < other / 4


@pytest.mark.parametrize("alignment", [None, 1, 128])
@pytest.mark.parametrize("mode", [*MODES, "auto"])
@pytest.mark.parametrize("activation", ["bf16", "fp8"])
def test_every_layout_gives_the_same(weights, mode, alignment, activation):
    hidden, probs, ids = routing(21, 2, seed=3)
    plain = Experts(*weights.stored, activation=activation).apply(hidden, probs, ids)
    laid_out = Experts(
        *weights.stored, activation=activation, gemm_mode=mode, alignment_m=alignment
    ).apply(hidden, probs, ids)
    assert torch.equal(plain, laid_out)


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("mode", MODES)
def test_expert_map_and_missing_experts(weights, mode, ids_dtype):
    """Global experts 0 .. 11 of which six live here, in another order; -1 is no expert."""
    expert_map = torch.full((12,), -1, dtype=torch.int32)
    expert_map[torch.tensor([9, 1, 4, 10, 0, 7])] = torch.arange(6, dtype=torch.int32)
    hidden, probs, ids = routing(30, 4, num_experts=12, seed=5)
    ids = ids.to(ids_dtype)
    ids[3, 1] = -1
    ids[8] = torch.tensor([2, 3, 5, 6])  # a token with no expert here
    out = torch.full_like(hidden, float("nan"))
    Experts(*weights.stored, gemm_mode=mode).apply(hidden, probs, ids, out, expert_map)
    close(out, moe(weights, hidden, probs, ids, expert_map))
    assert not out[8].any()


@pytest.mark.parametrize("mode", MODES)
def test_empty_experts_and_one_that_takes_all(weights, mode):
    hidden, probs, _ = routing(9, 1, seed=6)
    for expert in (0, E - 1):
        ids = torch.full((9, 1), expert)
        out = Experts(*weights.stored, gemm_mode=mode).apply(hidden, probs, ids)
        close(out, moe(weights, hidden, probs, ids))


def test_no_tokens_and_no_experts_for_any(weights):
    layer = Experts(*weights.stored)
    empty = layer.apply(
        torch.empty(0, H, dtype=torch.bfloat16),
        torch.empty(0, 2),
        torch.empty(0, 2, dtype=torch.int32),
    )
    assert empty.shape == (0, H)
    hidden, probs, ids = routing(4, 2)
    assert not layer.apply(hidden, probs, torch.full_like(ids, -1)).any()


@pytest.mark.parametrize("activation", ["bf16", "fp8"])
def test_router_weight_on_input(weights, activation):
    hidden, probs, ids = routing(11, 1, seed=8)
    out = Experts(*weights.stored, activation=activation).apply(
        hidden, probs, ids, apply_router_weight_on_input=True
    )
    close(out, moe(weights, hidden, probs, ids, on_input=True, fp8=activation == "fp8"))


def test_without_router_weights(weights):
    hidden, _, ids = routing(11, 2, seed=9)
    out = Experts(*weights.stored).apply(hidden, None, ids)
    close(out, moe(weights, hidden, None, ids))


@pytest.mark.parametrize("activation", ["bf16", "fp8"])
def test_clamped_swiglu(weights, activation):
    hidden, probs, ids = routing(13, 2, seed=10)
    limit = 0.4
    out = Experts(*weights.stored, activation=activation, limit=limit).apply(hidden, probs, ids)
    close(out, moe(weights, hidden, probs, ids, fp8=activation == "fp8", limit=limit))


@pytest.mark.parametrize("shape", [(3, 128, 128), (2, 256, 384), (4, 136, 72), (3, 64, 320)])
def test_sizes_around_a_block(shape):
    experts, hidden_size, inner = shape
    weights = MoeWeights(experts, hidden_size, inner, seed=1)
    chance = torch.Generator().manual_seed(2)
    hidden = torch.randn(17, hidden_size, generator=chance).to(torch.float16)
    ids = torch.randint(0, experts, (17, 2), generator=chance)
    probs = torch.rand(17, 2, generator=chance)
    out = Experts(*weights.stored).apply(hidden, probs, ids)
    close(out, moe(weights, hidden, probs, ids))


@pytest.mark.parametrize("activation", ["bf16", "fp8"])
def test_batched_form(weights, activation):
    counts = torch.tensor([0, 5, 1, 8, 3, 0], dtype=torch.int32)
    hidden = torch.randn(E, 8, H).to(torch.bfloat16)
    for e, count in enumerate(counts):
        hidden[e, count:] = float("nan")
    out = torch.full_like(hidden, 7.0)
    Experts(*weights.stored, activation=activation).apply_batched(hidden, counts, out)
    for e, count in enumerate(counts.tolist()):
        expected = weights.expert(e, hidden[e, :count], fp8=activation == "fp8")
        close(out[e, :count], expected)
        assert (out[e, count:] == 7.0).all()


def test_a_token_does_not_depend_on_its_batch(weights):
    hidden, probs, ids = routing(40, 3, seed=12)
    layer = Experts(*weights.stored)
    whole = layer.apply(hidden, probs, ids)
    for t in (0, 19, 39):
        alone = layer.apply(hidden[t : t + 1], probs[t : t + 1], ids[t : t + 1])
        assert torch.equal(alone[0], whole[t])


def test_compiles_without_a_break(weights):
    layer = Experts(*weights.stored)
    expert_map = torch.arange(E, dtype=torch.int32)

    @torch.compile(fullgraph=True, dynamic=True)
    def block(hidden, probs, ids):
        return layer.apply(hidden * 2, probs, ids, expert_map=expert_map) + 1

    for tokens in (5, 9):
        hidden, probs, ids = routing(tokens, 2, seed=tokens)
        expected = layer.apply(hidden * 2, probs, ids) + 1
        assert torch.equal(block(hidden, probs, ids), expected)


def test_plan_travels_as_text():
    plan = plan_experts(
        "cpu", activation="fp8", gemm_mode="psum_expert", alignment_m=128, limit=7.5
    )
    assert from_key(plan.key) == plan
    assert from_key(plan_experts("cpu").key) == plan_experts("cpu")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"activation": "int8"}, "activation: expected one of auto, bf16, fp8, got 'int8'"),
        ({"gemm_mode": "ragged"}, "gemm_mode: expected one of auto, per_token"),
        ({"alignment_m": 64}, "alignment_m: expected one of 1, 128, 256, got 64"),
        ({"block": (64, 64)}, r"block: expected one of 128x128, got \(64, 64\)"),
        ({"limit": -1.0}, "limit: expected a positive number or None, got -1.0"),
    ],
)
def test_refuses_wrong_options(weights, wrong, message):
    with pytest.raises(ValueError, match=message):
        Experts(*weights.stored, **wrong)


@pytest.mark.parametrize("index", range(4))
def test_refuses_weights_that_do_not_fit(weights, index):
    tensors = list(weights.stored)
    tensors[index] = tensors[index][..., :-1]
    with pytest.raises(ValueError, match=r"expected .*got"):
        Experts(*tensors)


def test_refuses_to_weight_the_input_with_nothing(weights):
    hidden, _, ids = routing(2, 1)
    with pytest.raises(ValueError, match="topk_weights: expected"):
        Experts(*weights.stored).apply(hidden, None, ids, apply_router_weight_on_input=True)


def test_devices_without_kernels_are_named(weights):
    tensors = [tensor.to("meta") for tensor in weights.stored]
    with pytest.raises(NotImplementedError, match="ragged_m_gemm: not available on 'meta'"):
        Experts(*tensors)

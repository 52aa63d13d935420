"""The MoE layer's other forms: 16-bit weights, a factor on the sum, rows that are not summed."""

from __future__ import annotations

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_oracle import MoeWeights, MoeWeights16, moe, moe_rows

from mate_plugin.layers.experts import Experts
from mate_plugin.layers.experts_ops import apply_experts
from mate_plugin.layers.plan import MODES, from_key, plan_experts

E, H, I = 6, 136, 200  # noqa: E741
BF16, FP16 = torch.bfloat16, torch.float16
WEIGHTS = {
    "fp8": MoeWeights(E, H, I),
    "bf16": MoeWeights16(E, H, I, BF16),
    "fp16": MoeWeights16(E, H, I, FP16),
}
# (weights, activation, dtype of hidden)
KINDS = {
    "8x16": ("fp8", "bf16", BF16),
    "8x16 half": ("fp8", "bf16", FP16),
    "8x8": ("fp8", "fp8", BF16),
    "16x16": ("bf16", "auto", BF16),
    "16x16 half": ("fp16", "bf16", FP16),
}
FACTOR = 2.7
quick = settings(max_examples=examples(40), deadline=None)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_mode = pytest.mark.parametrize("mode", MODES)


class Case:
    """A layer of one kind with random input, ids of -1 among it."""

    def __init__(self, kind: str, tokens: int = 19, topk: int = 3, seed: int = 0, **options):
        name, activation, dtype = KINDS[kind]
        self.weights = WEIGHTS[name]
        self.layer = Experts(*self.weights.stored, activation=activation, **options)
        chance = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(tokens, H, generator=chance).to(dtype)
        self.probs = torch.rand(tokens, topk, generator=chance)
        self.ids = torch.randint(-1, E, (tokens, topk), generator=chance)
        self.oracle = {"fp8": activation == "fp8"}

    @property
    def given(self) -> tuple[torch.Tensor, ...]:
        return self.hidden, self.probs, self.ids

    def apply(self, **options) -> torch.Tensor:
        return self.layer.apply(*self.given, **options)

    def rows(self, **options) -> torch.Tensor:
        return moe_rows(self.weights, *self.given, **self.oracle, **options)

    def sum(self, **options) -> torch.Tensor:
        return moe(self.weights, *self.given, **self.oracle, **options)


def close(got: torch.Tensor, expected: torch.Tensor, factor: float = 1.0) -> None:
    """``got`` is ``factor`` times what is expected."""
    torch.testing.assert_close(got.double() / factor, expected, rtol=2e-2, atol=2e-2)


@every_mode
@every_kind
def test_agrees_with_the_oracle_in_every_layout(kind, mode):
    case = Case(kind, gemm_mode=mode, alignment_m=128, limit=0.6)
    out = case.apply()
    assert out.dtype == case.hidden.dtype
    close(out, case.sum(limit=0.6))
    assert torch.equal(out, Case(kind, limit=0.6).apply())


def test_half_precision_keeps_more_digits_than_bfloat16():
    """Weights and activations are multiplied as they come and not as bfloat16."""
    case = Case("16x16 half", topk=1)
    error = (case.apply().double() - case.sum()).abs().max()
    assert error < 2e-3 < (case.sum().to(BF16).double() - case.sum()).abs().max()


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_plan_of_16_bit_weights_says_so_and_travels_as_text(dtype):
    weights = MoeWeights16(2, 8, 8, dtype)
    plan = Experts(*weights.stored, gemm_mode="psum_expert", limit=3.0).plan
    assert plan.describe().startswith("16-bit x 16-bit, psum_expert")
    assert "16-bit x 16-bit" in plan.key
    assert from_key(plan.key) == plan != plan_experts("cpu", gemm_mode="psum_expert", limit=3.0)


@every_mode
@every_kind
def test_factor_scales_the_sum(kind, mode):
    case = Case(kind, gemm_mode=mode)
    close(case.apply(routed_scaling_factor=FACTOR), case.sum(), FACTOR)


@every_kind
def test_factor_goes_in_before_the_only_rounding(kind):
    case = Case(kind, tokens=40, topk=1)
    case.probs.fill_(1)
    exact = case.apply(out=torch.empty(40, H))
    once = (exact * FACTOR).to(case.hidden.dtype)
    assert torch.equal(case.apply(routed_scaling_factor=FACTOR), once)
    if case.layer.plan.form == "8-bit x 16-bit":
        twice = (case.apply().float() * FACTOR).to(case.hidden.dtype)
        assert not torch.equal(once, twice)


def test_factor_of_16_bit_router_weights_is_applied_in_float32():
    case = Case("8x16")
    case.probs = case.probs.to(BF16)
    out = case.apply(routed_scaling_factor=FACTOR, out=torch.empty(19, H))
    close(out, case.sum(), FACTOR)
    case.probs = case.probs.float()
    assert torch.equal(case.apply(routed_scaling_factor=FACTOR, out=torch.empty(19, H)), out)


@every_kind
def test_factor_beside_weights_on_the_input_is_not_squashed_by_the_nonlinearity(kind):
    case = Case(kind, topk=1)
    out = case.apply(apply_router_weight_on_input=True, routed_scaling_factor=FACTOR)
    close(out, case.sum(on_input=True), FACTOR)


@every_kind
def test_factor_without_router_weights(kind):
    case = Case(kind)
    out = case.layer.apply(case.hidden, None, case.ids, routed_scaling_factor=FACTOR)
    close(out, case.rows().sum(1), FACTOR)


@pytest.mark.parametrize("factor", [1, FACTOR])
@every_mode
@every_kind
def test_rows_apart(kind, mode, factor):
    case = Case(kind, gemm_mode=mode)
    expected = case.rows()
    out = torch.full((19, 3, H), float("nan"), dtype=case.hidden.dtype)
    options = {"no_combine": True, "routed_scaling_factor": factor}
    assert case.apply(out=out, **options) is out
    close(out, expected, factor)
    assert not out[case.ids < 0].any()
    assert torch.equal(case.apply(**options), out)

    kept = case.apply(keep_router_weight=True, **options)
    close(kept, expected * case.probs.double().unsqueeze(-1), factor)


@every_kind
def test_rows_apart_with_weights_on_the_input_carry_them_once(kind):
    case = Case(kind)
    expected = case.rows(on_input=True)
    for keep in (False, True):
        options = {"apply_router_weight_on_input": True, "keep_router_weight": keep}
        close(case.apply(no_combine=True, **options), expected)


@every_mode
@every_kind
def test_experts_that_live_elsewhere(kind, mode):
    case = Case(kind, gemm_mode=mode)
    expert_map = torch.tensor([3, -1, 0, -1, 5, 1], dtype=torch.int32)
    close(case.apply(expert_map=expert_map), case.sum(expert_map=expert_map))
    apart = case.apply(expert_map=expert_map, no_combine=True)
    close(apart, case.rows(expert_map=expert_map))
    elsewhere = (case.ids < 0) | (expert_map[case.ids] < 0)
    assert elsewhere.any()
    assert not apart[elsewhere].any()


@every_mode
@every_kind
def test_nothing_to_do(kind, mode):
    none = Case(kind, tokens=0, gemm_mode=mode)
    assert none.apply().shape == (0, H)
    assert none.apply(no_combine=True, routed_scaling_factor=FACTOR).shape == (0, 3, H)
    idle = Case(kind, gemm_mode=mode)
    idle.ids.fill_(-1)
    assert not idle.apply(routed_scaling_factor=FACTOR).any()
    assert not idle.apply(no_combine=True).any()


@quick
@given(
    kind=st.sampled_from(sorted(KINDS)),
    mode=st.sampled_from(MODES),
    tokens=st.integers(1, 90),
    topk=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_a_token_does_not_depend_on_its_batch(kind, mode, tokens, topk, seed, data):
    case = Case(kind, tokens, topk, seed, gemm_mode=mode)
    some = data.draw(st.lists(st.integers(0, tokens - 1), min_size=1, max_size=tokens, unique=True))
    no_combine = data.draw(st.booleans())
    options = {"no_combine": no_combine, "keep_router_weight": no_combine}
    whole = case.apply(routed_scaling_factor=FACTOR, **options)
    part = [tensor[some] for tensor in case.given]
    assert torch.equal(
        case.layer.apply(*part, routed_scaling_factor=FACTOR, **options), whole[some]
    )


@pytest.mark.parametrize("no_combine", [False, True])
@pytest.mark.parametrize("kind", ["8x16", "8x8", "16x16"])
def test_compiles_without_a_break(kind, no_combine):
    case = Case(kind)

    def block(hidden, probs, ids):
        out = case.layer.apply(
            hidden * 2, probs, ids, routed_scaling_factor=FACTOR, no_combine=no_combine
        )
        return out + 1

    traced = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (5, 19):
        part = [tensor[:tokens] for tensor in case.given]
        assert torch.equal(traced(*part), block(*part))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"keep_router_weight": True},
            ValueError,
            "keep_router_weight: expected False without no_combine, got True",
        ),
        (
            {"routed_scaling_factor": "2"},
            TypeError,
            "routed_scaling_factor: expected a number or None, got str '2'",
        ),
        (
            {"no_combine": True, "out": torch.empty(19, H, dtype=BF16)},
            ValueError,
            r"out: expected a contiguous \[T, topk, H\] = \[19, 3, 136\] .*got \[19, 136\]",
        ),
        (
            {"no_combine": True, "out": torch.empty(3, 19, H, dtype=BF16).transpose(0, 1)},
            ValueError,
            r"out: expected a contiguous .*got \[19, 3, 136\] with strides \[136, 2584, 1\]",
        ),
        (
            {"out": torch.empty(19, 3, H, dtype=BF16)},
            ValueError,
            r"out: expected .*\(T, H\)",
        ),
    ],
)
def test_refuses_what_contradicts(options, error, message):
    with pytest.raises(error, match=message):
        Case("16x16").apply(**options)


def test_refuses_to_keep_weights_that_are_not_there():
    case = Case("8x16")
    with pytest.raises(ValueError, match=r"topk_weights: expected \[T, topk\] beside keep_router"):
        case.layer.apply(case.hidden, None, case.ids, no_combine=True, keep_router_weight=True)


def test_refuses_hidden_of_another_type_than_16_bit_weights():
    case = Case("16x16")
    case.hidden = case.hidden.to(FP16)
    with pytest.raises(TypeError, match=r"hidden: expected torch\.bfloat16, the dtype of w13, got"):
        case.apply()


def test_refuses_fp8_activations_beside_16_bit_weights():
    with pytest.raises(ValueError, match="activation: expected auto or bf16 beside 16-bit weights"):
        Experts(*WEIGHTS["bf16"].stored, activation="fp8")


def test_refuses_weights_of_unknown_bits():
    with pytest.raises(ValueError, match="weight_bits: expected 8 or 16, got 4"):
        plan_experts("cpu", weight_bits=4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({1: None}, ValueError, "w13_scale: expected a tensor beside w2_scale, or None for both"),
        ({3: None}, ValueError, "w2_scale: expected a tensor beside w13_scale, or None for both"),
        ({1: None, 3: None}, TypeError, "w13: expected torch.bfloat16 or .* w13_scale is None"),
        ({0: torch.empty(E, 2 * I, H, dtype=BF16)}, TypeError, "w13: expected FP8 beside w13_sc"),
        ({2: torch.empty(E, H, I, dtype=FP16)}, TypeError, "w2: expected FP8 beside w2_scale, got"),
    ],
)
def test_refuses_scales_that_do_not_go_with_the_weights(changes, error, message):
    tensors = [changes.get(i, tensor) for i, tensor in enumerate(WEIGHTS["fp8"].stored)]
    with pytest.raises(error, match=message):
        Experts(*tensors)


@pytest.mark.parametrize(
    ("index", "rewritten", "error", "message"),
    [
        (1, lambda s: s.int(), TypeError, r"w13_scale: expected torch\.float32, got torch\.int32"),
        (3, lambda s: s.to(torch.float8_e8m0fnu), TypeError, "w2_scale: expected torch.float32"),
        (3, lambda s: s.mT.contiguous().mT, ValueError, "w2_scale: expected contiguous rows"),
        (1, lambda s: torch.nn.functional.pad(s, (0, 3)), ValueError, "w13_scale: expected "),
    ],
    ids=["packed", "UE8M0", "transposed", "padded"],
)
def test_refuses_scales_rewritten_for_other_kernels(index, rewritten, error, message):
    tensors = list(WEIGHTS["fp8"].stored)
    tensors[index] = rewritten(tensors[index])
    with pytest.raises(error, match=message):
        Experts(*tensors)


def test_refuses_two_16_bit_types_and_shapes_that_do_not_fit():
    w13, w2 = WEIGHTS["bf16"].w13, WEIGHTS["fp16"].w2
    with pytest.raises(TypeError, match=r"w2: expected torch\.bfloat16, the dtype of w13, got"):
        Experts(w13, None, w2, None)
    with pytest.raises(ValueError, match=r"w13: expected \[6, 400, 136\] beside w2 \[6, 136, 200"):
        Experts(w13[:, :-1], None, WEIGHTS["bf16"].w2, None)


@pytest.mark.parametrize(("kind", "other"), [("8x16", "bf16"), ("16x16", "fp8")])
def test_refuses_weights_of_another_plan(kind, other):
    case = Case(kind)
    with pytest.raises(ValueError, match=r"w13_scale: expected .* beside a plan for"):
        apply_experts(
            case.layer.plan,
            *case.given,
            *WEIGHTS[other].stored,
            out=torch.empty_like(case.hidden),
        )

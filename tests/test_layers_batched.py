"""The MoE layer's batched form: 16-bit weights, rows that arrive in FP8, the overlap signal."""

from __future__ import annotations

import pytest
import torch
from layer_oracle import BLOCK, MoeWeights, MoeWeights16

from mate_plugin.kernels import quant
from mate_plugin.layers.experts import Experts

E, H, I, ROOM = 4, 200, 136, 150  # noqa: E741
BF16, FP16, E4M3 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
COUNTS = torch.tensor([0, 150, 1, 70], dtype=torch.int32)
WEIGHTS = MoeWeights(E, H, I)
SIGNALS = E * 3  # E * ceil(ROOM / 64)


def rows16(dtype: torch.dtype = BF16) -> torch.Tensor:
    """Rows ``[E, ROOM, H]``; those that are not in use are NaN."""
    hidden = torch.randn(E, ROOM, H, generator=torch.Generator().manual_seed(1)).to(dtype)
    for e, count in enumerate(COUNTS.tolist()):
        hidden[e, count:] = float("nan")
    return hidden


def rows8(by_group: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 rows with scales stored row by row, or with the slots of an expert side by side."""
    chance = torch.Generator().manual_seed(2)
    rows = torch.randn(E, ROOM, H, generator=chance).to(E4M3)
    scale = torch.rand(E, ROOM, 2, generator=chance) + 0.5
    return rows, scale.mT.contiguous().mT if by_group else scale


def check(out: torch.Tensor, expected, untouched: float = 7.0) -> None:
    """``expected(e, count)`` in the rows in use, ``untouched`` in the others."""
    for e, count in enumerate(COUNTS.tolist()):
        torch.testing.assert_close(
            out[e, :count].double(), expected(e, count), rtol=2e-2, atol=2e-2
        )
        assert (out[e, count:] == untouched).all()


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_16_bit_weights(dtype):
    weights, hidden = MoeWeights16(E, H, I, dtype), rows16(dtype)
    layer = Experts(*weights.stored)
    out = layer.apply_batched(hidden, COUNTS, torch.full_like(hidden, 7.0))
    check(out, lambda e, count: weights.expert(e, hidden[e, :count]))
    assert layer.apply_batched(hidden, COUNTS).dtype == dtype


@pytest.mark.parametrize("by_group", [False, True])
@pytest.mark.parametrize("activation", ["bf16", "fp8"])
def test_fp8_rows(activation, by_group):
    rows, scale = rows8(by_group)
    layer = Experts(*WEIGHTS.stored, activation=activation)
    out = torch.full((E, ROOM, H), 7.0, dtype=BF16)
    assert layer.apply_batched((rows, scale), COUNTS, out) is out
    exact = rows.double() * scale.double().repeat_interleave(BLOCK, 2)[..., :H]
    fp8 = activation == "fp8"
    check(out, lambda e, count: WEIGHTS.through(e, exact[e, :count], BF16, fp8))
    allocated = layer.apply_batched((rows, scale), COUNTS)
    assert allocated.dtype == BF16
    assert torch.equal(allocated[1], out[1])


@pytest.mark.parametrize("inner", [128, 136])
def test_fp8_rows_give_the_bits_of_rows_that_are_rounded_here(inner):
    weights = MoeWeights(E, H, inner)
    layer = Experts(*weights.stored, activation="fp8")
    hidden = rows16()
    given, rounded_here = (
        layer.apply_batched(rows, COUNTS, torch.full_like(hidden, 7.0))
        for rows in (quant.per_token_group_quant_fp8(hidden, BLOCK), hidden)
    )
    assert torch.equal(given, rounded_here)


def forms() -> dict[str, tuple]:
    sixteen = MoeWeights16(E, H, I, BF16)
    return {
        "8x16": (WEIGHTS, "bf16", rows16()),
        "8x8": (WEIGHTS, "fp8", rows16()),
        "fp8 rows": (WEIGHTS, "fp8", rows8()),
        "fp8 rows, kept": (WEIGHTS, "bf16", rows8()),
        "16x16": (sixteen, "bf16", rows16()),
    }


FORMS = forms()


@pytest.mark.parametrize("form", FORMS)
def test_signal_says_which_rows_are_done(form):
    weights, activation, hidden = FORMS[form]
    layer = Experts(*weights.stored, activation=activation)
    plain = layer.apply_batched(hidden, COUNTS, torch.zeros(E, ROOM, H, dtype=BF16))
    out, signal = torch.zeros_like(plain), torch.full((SIGNALS,), 5, dtype=torch.int32)
    result = layer.apply_batched(hidden, COUNTS, out, signal)
    assert result[0] is out
    assert result[1] is signal
    assert torch.equal(out, plain)
    block_m, threshold = result[2:]
    blocks = -(-ROOM // block_m)
    expected = torch.full((SIGNALS,), 5)
    for e, count in enumerate(COUNTS.tolist()):
        expected[e * blocks : e * blocks + -(-count // block_m)] += threshold
    assert threshold > 0
    assert signal.tolist() == expected.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_a_row_does_not_depend_on_the_others(form):
    weights, activation, hidden = FORMS[form]
    layer = Experts(*weights.stored, activation=activation)
    whole = layer.apply_batched(hidden, COUNTS)
    for slot in (0, 69):
        one = torch.tensor([0, 1, 0, 1], dtype=torch.int32)
        at = slice(slot, slot + 1)
        part = tuple(x[:, at] for x in hidden) if isinstance(hidden, tuple) else hidden[:, at]
        alone = layer.apply_batched(part, one)
        for e in (1, 3):
            assert torch.equal(alone[e, 0], whole[e, slot])


@pytest.mark.parametrize("form", FORMS)
def test_no_room(form):
    weights, activation, hidden = FORMS[form]
    hidden = tuple(x[:, :0] for x in hidden) if isinstance(hidden, tuple) else hidden[:, :0]
    layer = Experts(*weights.stored, activation=activation)
    assert layer.apply_batched(hidden, torch.zeros_like(COUNTS)).shape == (E, 0, H)
    signal = torch.zeros(0, dtype=torch.int32)
    assert len(layer.apply_batched(hidden, torch.zeros_like(COUNTS), signal=signal)) == 4


@pytest.mark.parametrize("form", FORMS)
def test_compiles_without_a_break(form):
    weights, activation, hidden = FORMS[form]
    layer = Experts(*weights.stored, activation=activation)

    def block(hidden, counts):
        out = torch.zeros(E, ROOM, H, dtype=BF16)
        signal = torch.zeros(SIGNALS, dtype=torch.int32)
        out, signal, block_m, threshold = layer.apply_batched(hidden, counts, out, signal)
        return out + 1, signal + block_m, threshold

    def without(hidden, counts):
        return layer.apply_batched(hidden, counts, torch.zeros(E, ROOM, H, dtype=BF16)) + 1

    for function in (block, without):
        torch._dynamo.reset()
        traced = torch.compile(function, fullgraph=True, backend="aot_eager")(hidden, COUNTS)
        for got, want in zip(traced, function(hidden, COUNTS), strict=True):
            assert torch.equal(torch.as_tensor(got), torch.as_tensor(want))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda q, s: (q.to(BF16), s), TypeError, r"hidden\[0\]: expected .*float8.*bfloat16"),
        (lambda q, s: (q, s.double()), TypeError, r"hidden\[1\]: expected .*float32.*float64"),
        (lambda q, s: (q, s[..., :1]), ValueError, r"hidden\[1\]: expected shape .*got"),
        (
            lambda *both: both[:1],
            ValueError,
            r"hidden: expected a tuple \(tensor, scale\), got 1 items",
        ),
        (lambda *_: None, TypeError, r"hidden: expected a tuple \(tensor, scale\), got None"),
    ],
)
def test_refuses_rows_in_a_wrong_form(change, error, message):
    out = torch.full((E, ROOM, H), 7.0, dtype=BF16)
    with pytest.raises(error, match=message):
        Experts(*WEIGHTS.stored).apply_batched(change(*rows8()), COUNTS, out)
    assert (out == 7.0).all()


def test_refuses_fp8_rows_beside_16_bit_weights():
    layer = Experts(*MoeWeights16(E, H, I, BF16).stored)
    with pytest.raises(TypeError, match=r"hidden: expected a torch\.bfloat16 tensor beside 16-bit"):
        layer.apply_batched(rows8(), COUNTS)
    with pytest.raises(TypeError, match=r"hidden: expected torch\.bfloat16, the dtype of w13, got"):
        layer.apply_batched(rows16(FP16), COUNTS)


@pytest.mark.parametrize("signal", [torch.zeros(SIGNALS), torch.zeros(2, dtype=torch.int32)])
def test_refuses_a_signal_of_another_type_or_size(signal):
    with pytest.raises((TypeError, ValueError), match=r"signal: expected .*got"):
        Experts(*WEIGHTS.stored).apply_batched(rows16(), COUNTS, signal=signal)

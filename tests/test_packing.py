"""Packed weights: the same products, whatever the batch, and errors where they cannot be."""

from __future__ import annotations

import pytest
import torch

from mate_plugin.kernels import gemm, library, packing
from mate_plugin.layers.experts import Experts

E4M3, E5M2, BF16, FP16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16

TYPES = [dtype for dtype in (E4M3, E5M2, BF16) if packing.wanted(dtype)]
# Kernels of BF16 products add in the same order from packed weights and from rows.
SAME_ORDER = library.isa() in ("avx512_bf16", "amx")
packs = pytest.mark.skipif(not TYPES, reason=f"the {library.isa()} kernels read rows")
packs_wide = pytest.mark.skipif(BF16 not in TYPES, reason="packs no weights of 16 bits here")


def assert_same(packed: torch.Tensor, rows: torch.Tensor) -> None:
    """Bits where the order of additions is the same, else rounding of sums of random terms."""
    if SAME_ORDER:
        # As integers, so that NaN equals itself.
        ints = {2: torch.int16, 4: torch.int32}[rows.element_size()]
        assert torch.equal(packed.view(ints), rows.view(ints))
    else:
        step = 2**-7 if rows.dtype == BF16 else 2**-18
        rows, packed = rows.double(), packed.double()
        assert (packed - rows).abs().max() <= step * rows.abs().max()


def any_codes(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Every code of the type, NaN and infinity too where they are packed, or random bfloat16."""
    if dtype == BF16:
        return torch.randn(shape).to(dtype)
    codes = torch.randint(0, 256, shape, dtype=torch.uint8)
    if not SAME_ORDER:
        codes[codes & 0x7F == 0x7F] = 0
    return codes.view(dtype)


def finite_codes(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def scales(e: int, n: int, k: int) -> torch.Tensor:
    return torch.rand(e, -(-n // 128), -(-k // 128)) + 0.5


@packs
@pytest.mark.parametrize("dtype", TYPES or [E4M3])
@pytest.mark.parametrize("shape", [(2, 16, 4), (3, 48, 36), (1, 32, 128), (2, 80, 64)])
def test_no_element_is_lost(dtype, shape):
    torch.manual_seed(0)
    rows = any_codes(*shape, dtype=dtype)
    packed = packing.pack_weights(rows)
    assert packing.as_rows(packed).shape == rows.shape
    size = rows.element_size()
    for panel in range(shape[1] // 16):
        before = rows[:, 16 * panel : 16 * panel + 16].contiguous().view(torch.uint8)
        after = packed[:, panel].contiguous().view(torch.uint8)
        # Sixteen rows of four bytes each stay together; within them the kernels have an order.
        whole = before.reshape(shape[0], 16, -1, 4).transpose(1, 2).reshape(shape[0], -1, 64)
        assert torch.equal(whole.sort(-1)[0], after.reshape(shape[0], -1, 64).sort(-1)[0])
    again = rows.clone()
    view = packing.pack_weights(again, in_place=True)
    assert view.data_ptr() == again.data_ptr()
    assert torch.equal(view.view(torch.uint8), packed.view(torch.uint8))
    assert size * rows.numel() == packed.numel() * packed.element_size()


# Rows on either side of each way in which the kernels take them.
ROWS = (1, 2, 8, 9, 11, 16, 17, 30, 31, 70, 300)


@packs
@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(("n", "k"), [(96, 320), (16, 128), (80, 36), (144, 1100)])
@pytest.mark.parametrize("dtype", [dtype for dtype in TYPES if dtype != BF16] or [E4M3])
def test_ragged_m_w8a16(dtype, n, k, m):
    torch.manual_seed(m)
    x = torch.randn(3 * m, k).bfloat16()
    weight, scale = any_codes(3, n, k, dtype=dtype), scales(3, n, k)
    counts = torch.tensor([m, 0, m], dtype=torch.int32)
    out = torch.zeros(2, 3 * m, n, dtype=torch.float32)
    for to, b in zip(out, (weight, packing.pack_weights(weight)), strict=True):
        gemm.ragged_m_moe_gemm_w8a16(
            x, (b, scale), counts, to, gemm_mode="per_expert", alignment_m=1
        )
    assert_same(out[1], out[0])


@packs
@pytest.mark.parametrize("m", [1, 7, 12, 40])
def test_other_forms(m):
    torch.manual_seed(m)
    e, n, k = 2, 48, 384
    rows = (finite_codes(e * m, k, dtype=E4M3), torch.rand(e * m, 3) + 0.5)
    weight, scale = finite_codes(e, n, k, dtype=E4M3), scales(e, n, k)
    packed = packing.pack_weights(weight)
    counts = torch.full((e,), m, dtype=torch.int32)
    for b in (weight, packed):
        out = torch.empty(e * m, n, dtype=BF16)
        gemm.ragged_m_moe_gemm_8bit(
            rows, (b, scale), counts, out, gemm_mode="per_expert", alignment_m=1
        )
        slots = tuple(part.unflatten(0, (e, m)) for part in rows)
        masked, signal, block_m, threshold = gemm.masked_moe_gemm_8bit(
            slots, (b, scale), counts, None, enable_overlap=True
        )
        assert (block_m, threshold) == (128, 1)
        assert signal[: e * -(-m // 128)].eq(1).all()
        dense = gemm.gemm_fp8_nt_groupwise(rows[0][:m], b[0], rows[1][:m], scale[0], out_dtype=BF16)
        wide = gemm.gemm_w8a16_nt_groupwise(rows[0][:m].bfloat16(), b[0], scale[0])
        results = (out, masked.flatten(0, 1), dense, wide)
        if b is weight:
            expected = results
    for before, after in zip(expected, results, strict=True):
        assert_same(after, before)


@packs_wide
@pytest.mark.parametrize("m", [1, 7, 12, 40])
def test_weights_of_16_bits(m):
    torch.manual_seed(m)
    e, n, k = 2, 48, 384
    counts = torch.full((e,), m, dtype=torch.int32)
    wide_weight = torch.randn(e, n, k).bfloat16()
    x = torch.randn(e * m, k).bfloat16()
    first, second = torch.empty(2, e * m, n, dtype=BF16)
    for to, b in ((first, wide_weight), (second, packing.pack_weights(wide_weight))):
        gemm.ragged_m_moe_gemm_16bit(x, b, counts, to, gemm_mode="per_expert", alignment_m=1)
    assert torch.equal(first, second)


@packs
@pytest.mark.parametrize(("n", "k"), [(96, 320), (208, 1100)])
def test_a_row_does_not_depend_on_the_others(n, k):
    torch.manual_seed(5)
    most = 160
    x = torch.randn(most, k).bfloat16()
    b = packing.pack_weights(any_codes(1, n, k, dtype=E4M3)), scales(1, n, k)
    out = torch.empty(len(ROWS), most, n)
    for to, m in zip(out, ROWS, strict=True):
        m = min(m, most)
        counts = torch.tensor([m], dtype=torch.int32)
        gemm.ragged_m_moe_gemm_w8a16(
            x[:m], b, counts, to[:m], gemm_mode="per_expert", alignment_m=1
        )
    for to, m in zip(out, ROWS, strict=True):
        m = min(m, most)
        assert torch.equal(to[:m].view(torch.int32), out[-1, :m].view(torch.int32))


@packs
@pytest.mark.parametrize("activation", ["bf16", "fp8"])
@pytest.mark.parametrize("mode", ["per_expert", "psum_expert", "masked"])
@pytest.mark.parametrize("inner", [384, 144])
def test_a_layer_of_packed_weights(activation, mode, inner):
    torch.manual_seed(3)
    e, h, t, topk = 4, 256, 23, 2
    block_rows = -(-inner // 128)
    weights = (
        finite_codes(e, 2 * inner, h, dtype=E4M3),
        torch.rand(e, 2 * block_rows, 2) * 0.02 + 0.01,
        finite_codes(e, h, inner, dtype=E4M3),
        torch.rand(e, 2, block_rows) * 0.02 + 0.01,
    )
    hidden, probs = torch.randn(t, h).bfloat16(), torch.rand(t, topk)
    ids = torch.stack([torch.randperm(e)[:topk] for _ in range(t)])
    options = {"activation": activation, "gemm_mode": mode}
    plain = Experts(*weights, **options)
    packed = Experts(*(w.clone() for w in weights), **options, pack=True)
    assert "packed weights" in packed.plan.describe()
    assert "packed" not in plain.plan.describe()
    for arguments in ({}, {"no_combine": True}, {"apply_router_weight_on_input": True}):
        got = packed.apply(hidden, probs, ids, **arguments)
        if activation == "bf16" or SAME_ORDER:
            assert_same(got, plain.apply(hidden, probs, ids, **arguments))
        one = packed.apply(hidden[:1], probs[:1], ids[:1], **arguments)
        assert torch.equal(one, got[:1])
    slots, counts = torch.randn(e, 6, h).bfloat16(), torch.tensor([6, 0, 3, 1], dtype=torch.int32)
    outs = [
        layer.apply_batched(slots, counts, torch.zeros(e, 6, h, dtype=BF16))
        for layer in (plain, packed)
    ]
    if activation == "bf16" or SAME_ORDER:
        assert_same(*reversed(outs))
    with pytest.raises(TypeError, match=r"hidden: expected torch.bfloat16 beside packed weights"):
        packed.apply(hidden.half(), probs, ids)


@packs
def test_a_compiled_layer_of_packed_weights():
    torch.manual_seed(4)
    e, h, inner = 2, 128, 128
    weights = (
        finite_codes(e, 2 * inner, h, dtype=E4M3),
        torch.full((e, 2, 1), 0.02),
        finite_codes(e, h, inner, dtype=E4M3),
        torch.full((e, 1, 1), 0.02),
    )
    layer = Experts(*weights, pack=True)
    hidden, probs = torch.randn(5, h).bfloat16(), torch.rand(5, 1)
    ids = torch.randint(0, e, (5, 1))
    compiled = torch.compile(layer.apply, fullgraph=True)
    assert torch.equal(compiled(hidden, probs, ids), layer.apply(hidden, probs, ids))


@packs
def test_what_the_layer_cannot_pack_stays():
    # The up rows would start within a panel.
    e, h, inner = 2, 128, 72
    weights = (
        finite_codes(e, 2 * inner, h, dtype=E4M3),
        torch.rand(e, 2, 1),
        finite_codes(e, h, inner, dtype=E4M3),
        torch.rand(e, 1, 1),
    )
    before = [w.clone() for w in weights]
    assert not Experts(*weights, pack=True).plan.packed
    for left, right in zip(weights, before, strict=True):
        assert torch.equal(left.view(torch.uint8), right.view(torch.uint8))


@packs
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 24, 16), "N in 16s"),
        ((2, 16, 6), "4 bytes of K"),
        ((16,), "N, K"),
        ((2, 0, 16), "contiguous"),
    ],
)
def test_bad_weights_are_named(shape, words):
    with pytest.raises(ValueError, match=rf"weight: .*{words}"):
        packing.pack_weights(torch.zeros(shape).to(E4M3))


@packs
def test_weights_that_are_not_packed_are_named():
    with pytest.raises(TypeError, match=r"weight: expected a torch.Tensor, got"):
        packing.pack_weights([1.0])
    with pytest.raises(ValueError, match=r"weight: .*torch.float16"):
        packing.pack_weights(torch.zeros(2, 16, 8, dtype=FP16))
    with pytest.raises(ValueError, match=r"weight: .*contiguous"):
        packing.pack_weights(torch.zeros(2, 16, 16).to(E4M3).transpose(1, 2))


@pytest.mark.skipif(SAME_ORDER or not TYPES, reason="NaN is packed here")
def test_nan_stays_in_rows():
    weight = torch.zeros(2, 16, 16).to(E4M3)
    weight.view(torch.uint8)[1, 3, 5] = 0xFF
    before = weight.clone()
    with pytest.raises(ValueError, match=r"weight: .*NaN from rows only"):
        packing.pack_weights(weight, in_place=True)
    assert torch.equal(weight.view(torch.uint8), before.view(torch.uint8))


@packs
def test_bad_calls_write_nothing():
    x, counts = torch.randn(2, 256), torch.tensor([2], dtype=torch.int32)
    b = (packing.pack_weights(finite_codes(1, 256, 256, dtype=E4M3)), torch.ones(1, 2, 2))
    out = torch.full((2, 256), 7.0)
    call = gemm.ragged_m_moe_gemm_w8a16
    refused = {"gemm_mode": "per_expert", "alignment_m": 1}
    if SAME_ORDER:
        x = x.half()
    else:
        b = (b[0], torch.ones(1, 256, 2))
        refused["scale_granularity_mnk"] = (1, 1, 128)
    with pytest.raises(ValueError, match=r"packed weights: the .* kernels do not take them"):
        call(x, b, counts, out, **refused)
    b = (b[0], torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="major_b_mode: expected K beside packed weights"):
        call(x, b, counts, out, gemm_mode="per_expert", alignment_m=1, major_b_mode="N")
    parts = b[0][:, ::2], b[0][:, :, :32]
    for part in parts:
        with pytest.raises(ValueError, match="packed weights: expected whole panels"):
            call(x.bfloat16(), (part, b[1]), counts, out, gemm_mode="per_expert", alignment_m=1)
    with pytest.raises(ValueError, match="out: expected"):
        call(x.bfloat16(), b, counts, out[:, :96].contiguous(), gemm_mode="per_expert")
    assert out.eq(7).all()


@pytest.mark.skipif(bool(TYPES), reason="these kernels take packed weights")
def test_kernels_that_read_rows_refuse_packed_weights():
    with pytest.raises(ValueError, match=r"kernels read weights of .* as they are"):
        packing.pack_weights(finite_codes(1, 16, 16, dtype=E4M3))
    b = packing.packed_view(finite_codes(1, 128, 128, dtype=E4M3)), torch.ones(1, 1, 1)
    out = torch.full((2, 128), 7.0)
    with pytest.raises(ValueError, match=r"packed weights: the .* kernels do not take them"):
        gemm.ragged_m_moe_gemm_w8a16(
            torch.randn(2, 128).bfloat16(), b, torch.tensor([2], dtype=torch.int32), out,
            gemm_mode="per_expert", alignment_m=1,
        )  # fmt: skip
    assert out.eq(7).all()


@pytest.mark.skipif(SAME_ORDER or not TYPES, reason="these kernels know no subnormal numbers")
def test_subnormal_codes_where_the_process_flushes_them():
    torch.manual_seed(6)
    codes = torch.randint(0, 8, (1, 32, 128), dtype=torch.uint8).view(E4M3)
    b = packing.pack_weights(codes), torch.ones(1, 1, 1)
    x, counts = torch.randn(3, 128), torch.tensor([3], dtype=torch.int32)
    out = torch.empty(2, 3, 32)
    for to, flushes in zip(out, (False, True), strict=True):
        torch.set_flush_denormal(flushes)
        try:
            gemm.ragged_m_moe_gemm_w8a16(
                x, b, counts, to, gemm_mode="per_expert", alignment_m=1, num_mp=1
            )
        finally:
            torch.set_flush_denormal(False)
    assert_same(out[1], out[0])
    assert_same(out[0], x @ codes[0].float().t())

"""Masked grouped GEMMs against the float64 oracle, and their overlap signal."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from gemm_cases import (
    BF16,
    E4M3,
    E5M2,
    F32,
    FP8,
    FP16,
    NAN,
    Maker,
    assert_close,
    bits,
    cases,
    ceil_div,
)
from hypothesis import given
from hypothesis import strategies as st

from mate_plugin.kernels import gemm
from mate_plugin.kernels.reference import gemm as reference

FUNCTIONS = {
    "8bit": gemm.masked_moe_gemm_8bit,
    "w8a16": gemm.masked_moe_gemm_w8a16,
    "16bit": gemm.masked_moe_gemm_16bit,
}


def operands(
    make: Maker, form: str, types: Any, shape: tuple[int, ...], grain: tuple[int, ...]
) -> tuple[Any, Any]:
    experts, rows, n, k = shape
    a, b = make.normal(experts, rows, k, dtype=types[0]), make.normal(experts, n, k, dtype=types[1])
    if form == "16bit":
        return a, b
    per_tensor = grain[0] == -1
    nb, kb = ceil_div(n, grain[1]), ceil_div(k, grain[2])
    sb = make.scale(1) if per_tensor else make.scale(experts, nb, kb)
    if form == "w8a16":
        return a, (b, sb)
    return (a, make.scale(1) if per_tensor else make.scale(experts, rows, kb)), (b, sb)


def poison(a: Any, free: torch.Tensor) -> None:
    for x in a if isinstance(a, tuple) else (a,):
        if x.dim() == 3 and x.dtype in FP8:
            x.view(torch.uint8)[free] = 0x7F
        elif x.dim() == 3:
            x[free] = NAN


sizes = st.sampled_from([0, 1, 3, 17, 64, 128, 129, 200, 257])


@cases
@given(
    seed=st.integers(0, 2**31),
    form=st.sampled_from(["8bit", "8bit", "w8a16", "16bit"]),
    counts=st.lists(st.sampled_from([0, 0, 1, 2, 7, 40, 130]), max_size=5),
    spare=st.sampled_from([0, 1, 70]),
    n=sizes,
    k=sizes,
    grain=st.sampled_from([(1, 128, 128), (1, 1, 128), (1, -1, -1), (-1, -1, -1)]),
    fp8=st.tuples(st.sampled_from(FP8), st.sampled_from(FP8)),
    wide=st.sampled_from([BF16, FP16, F32]),
    half=st.sampled_from([BF16, FP16]),
    strided=st.booleans(),
    overlap=st.booleans(),
)
def test_oracle(
    seed: int,
    form: str,
    counts: list[int],
    spare: int,
    n: int,
    k: int,
    grain: tuple[int, int, int],
    fp8: Any,
    wide: torch.dtype,
    half: torch.dtype,
    strided: bool,
    overlap: bool,
) -> None:
    make = Maker(seed, strided)
    experts, rows = len(counts), max(counts, default=0) + spare
    types = {"8bit": fp8, "w8a16": (wide, fp8[1]), "16bit": (half, half)}[form]
    a, b = operands(make, form, types, (experts, rows, n, k), grain)
    info = torch.tensor(counts, dtype=torch.int32)
    used = torch.arange(rows) < info[:, None]
    poison(a, ~used)
    out = make.out(experts, rows, n, dtype=wide if form == "w8a16" else half)
    before = out.clone()
    options: dict[str, Any] = {} if form == "16bit" else {"scale_granularity_mnk": grain}
    result = FUNCTIONS[form](a, b, info, out, expect_tokens=3, enable_overlap=overlap, **options)
    if overlap:
        result, signal, block_m, threshold = result
        assert signal.tolist() == expected_signal(counts, rows, block_m, threshold)
    assert result is out
    assert torch.equal(bits(out[~used]), bits(before[~used]))

    def product(x: Any, y: Any) -> torch.Tensor:
        return reference.masked(x, y, info, grain)[used]

    assert_close(out[used], product, a, b, k)


def expected_signal(
    counts: list[int], rows: int, block_m: int, threshold: int, start: int = 0
) -> list[int]:
    """Blocks with a row below the mask have risen by the threshold, the others not at all."""
    blocks = ceil_div(rows, block_m)
    signal = [start] * (len(counts) * ceil_div(rows, 64))
    for expert, count in enumerate(counts):
        for block in range(ceil_div(count, block_m)):
            signal[expert * blocks + block] += threshold
    return signal


def overlap_case() -> tuple[Any, Any, torch.Tensor]:
    make = Maker(1)
    a, b = operands(make, "8bit", (E4M3, E4M3), (3, 400, 300, 260), (1, 128, 128))
    return a, b, torch.tensor([400, 0, 129], dtype=torch.int32)


def test_the_signal_adds_to_what_is_there() -> None:
    a, b, info = overlap_case()
    signal = torch.full((3 * 7,), 5, dtype=torch.int32)
    out, same, block_m, threshold = gemm.masked_moe_gemm_8bit(
        a, b, info, None, enable_overlap=True, signal=signal
    )
    assert same is signal
    assert out.dtype == BF16
    assert signal.tolist() == expected_signal(info.tolist(), 400, block_m, threshold, 5)
    plain = gemm.masked_moe_gemm_8bit(a, b, info, torch.zeros(3, 400, 300, dtype=BF16))
    assert torch.equal(plain[0], out[0])
    assert torch.equal(plain[2, :129], out[2, :129])


def test_a_consumer_that_spins_on_the_signal_sees_finished_rows() -> None:
    a, b, info = overlap_case()
    want = gemm.masked_moe_gemm_8bit(a, b, info, torch.zeros(3, 400, 300, dtype=BF16))
    blocks = {
        (expert, block): slice(block * 128, min(block * 128 + 128, count))
        for expert, count in enumerate(info.tolist())
        for block in range(ceil_div(count, 128))
    }
    for _ in range(5):
        out = torch.zeros(3, 400, 300, dtype=BF16)
        signal = torch.zeros(3 * 7, dtype=torch.int32)
        seen, torn, stop = [], [], threading.Event()

        def consume(
            out: torch.Tensor = out,
            signal: torch.Tensor = signal,
            seen: list[Any] = seen,
            torn: list[Any] = torn,
            stop: threading.Event = stop,
        ) -> None:
            waiting = dict(blocks)
            while waiting:
                last_look = stop.is_set()
                for (expert, block), rows in list(waiting.items()):
                    if int(signal[expert * 4 + block]) >= 3:
                        seen.append((expert, block))
                        if not torch.equal(out[expert, rows], want[expert, rows]):
                            torn.append((expert, block))
                        del waiting[expert, block]
                if last_look:
                    return

        consumer = threading.Thread(target=consume)
        consumer.start()
        try:
            _, _, block_m, threshold = gemm.masked_moe_gemm_8bit(
                a, b, info, out, enable_overlap=True, signal=signal
            )
        finally:
            stop.set()
            consumer.join()
        assert (block_m, threshold) == (128, 3)
        assert sorted(seen) == sorted(blocks)
        assert not torn


@pytest.mark.parametrize("form", ["8bit", "w8a16", "16bit"])
def test_missing_out_is_allocated(form: str) -> None:
    types = {"8bit": (E4M3, E5M2), "w8a16": (F32, E4M3), "16bit": (FP16, FP16)}[form]
    a, b = operands(Maker(2), form, types, (2, 3, 20, 40), (1, 128, 128))
    info = torch.tensor([3, 3], dtype=torch.int32)
    out = FUNCTIONS[form](a, b, info, None)
    assert out.dtype == {"8bit": BF16, "w8a16": F32, "16bit": FP16}[form]
    assert_close(out, lambda x, y: reference.masked(x, y, info), a, b, 40)


def test_a_row_alone_gives_the_same_bits_as_in_a_batch() -> None:
    a, b, _ = overlap_case()
    full = torch.tensor([400, 400, 400], dtype=torch.int32)
    few = torch.tensor([1, 2, 77], dtype=torch.int32)
    batch = gemm.masked_moe_gemm_8bit(a, b, full, None)
    out = gemm.masked_moe_gemm_8bit(a, b, few, None)
    for expert, count in enumerate(few.tolist()):
        assert torch.equal(out[expert, :count], batch[expert, :count])


def test_nans_stay_in_their_row_and_column() -> None:
    a, b, info = overlap_case()
    a[0].view(torch.uint8)[0, 130, 250] = 0x7F
    b[0].view(torch.uint8)[2, 299, 3] = 0xFF
    out = gemm.masked_moe_gemm_8bit(a, b, info, torch.zeros(3, 400, 300, dtype=BF16))
    want = torch.zeros(3, 400, 300, dtype=torch.bool)
    want[0, 130] = True
    want[2, :129, 299] = True
    assert torch.equal(out.isnan(), want)

"""Arguments that are no tensors, and combinations: the error names them, nothing is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from api_calls import (
    CALLS,
    MASKED,
    RAGGED_K,
    RAGGED_M,
    N,
    T,
    bmm_fp8,
    deep_dense,
    expect,
    groupwise,
    i32,
    masked,
    ragged_m,
)
from gemm_cases import BF16, E4M3, F32, FP16

OPTIONS = [
    *((call, "gemm_mode", "per_row", ValueError, "'psum_expert'") for call in RAGGED_M),
    *((call, "gemm_mode", 1, TypeError, "got int 1") for call in RAGGED_M),
    *((call, "major_a_mode", "N", ValueError, "'K', 'M'") for call in RAGGED_M),
    *((call, "major_a_mode", ["K"], TypeError, "got list") for call in RAGGED_M),
    *((call, "major_b_mode", "M", ValueError, "'K', 'N'") for call in RAGGED_M),
    *(
        (call, "alignment_m", 64, ValueError, r"one of \(1, 128, 256\), got int 64")
        for call in RAGGED_M
    ),
    *((call, "alignment_m", 128.0, TypeError, "an integer or None") for call in RAGGED_M),
    *((call, "num_mp", 0, ValueError, "at least 1, got 0") for call in RAGGED_M + RAGGED_K),
    *((call, "num_mp", -3, ValueError, "at least 1, got -3") for call in RAGGED_M + RAGGED_K),
    *((call, "num_mp", True, TypeError, "an integer or None") for call in RAGGED_M + RAGGED_K),
    *((call, "num_mp", "all", TypeError, "an integer or None") for call in RAGGED_M + RAGGED_K),
    *((call, "gemm_mode", "per_token", ValueError, "'per_expert'") for call in RAGGED_K),
    *((call, "major_a_mode", "K", ValueError, "'M'") for call in RAGGED_K),
    *((call, "major_b_mode", "K", ValueError, "'N'") for call in RAGGED_K),
    *((call, "expect_tokens", -1, ValueError, "at least 0") for call in MASKED),
    *((call, "expect_tokens", 1.5, TypeError, "an integer or None") for call in MASKED),
    *((call, "enable_overlap", 1, TypeError, "a bool") for call in MASKED),
    *(
        (call, "scale_granularity_mnk", bad, kind, "expected")
        for call in ("ragged_m_moe_gemm_8bit", "ragged_m_moe_gemm_w8a16", "masked_moe_gemm_8bit")
        for bad, kind in (
            ((1, 128, 64), ValueError),
            ((128, 128, 128), ValueError),
            ((1, 128), ValueError),
            ((1, 128, 128.0), TypeError),
            (128, TypeError),
            ("1,128,128", TypeError),
        )
    ),
    ("ragged_k_moe_gemm_8bit", "scale_granularity_mnk", (1, 128, 128), ValueError, "(1, 1, 128)"),
    *(
        (call, "backend", bad, kind, "'auto', 'mudnn', 'mubin'")
        for call in ("bmm_fp16", "bmm_fp8", "gemm_fp8_nt_groupwise")
        for bad, kind in (("cublas", ValueError), (0, TypeError))
    ),
    ("bmm_fp16", "backend", None, ValueError, "got NoneType None"),
    ("bmm_fp16", "out_dtype", None, TypeError, "a torch.dtype"),
    ("bmm_fp16", "out_dtype", E4M3, ValueError, "torch.float32, got torch.float8_e4m3fn"),
    ("bmm_fp8", "out_dtype", F32, ValueError, "expected .*got torch.float32"),
    ("bmm_fp8", "scale_granularity_mnk", (1, 128, 128), ValueError, "got tuple"),
    ("gemm_fp8_nt_groupwise", "out_dtype", BF16, ValueError, "torch.float8_e4m3fn, got"),
    ("gemm_fp8_nt_groupwise", "scale_major_mode", "N", ValueError, "'K', 'MN'"),
    ("gemm_fp8_nt_groupwise", "mma_sm", 2, ValueError, "1 or None"),
    ("gemm_fp8_nt_groupwise", "scale_granularity_mnk", (128, 128, 128), ValueError, "got tuple"),
    ("gemm_w8a16_nt_groupwise", "scale_granularity_mnk", (1, 64, 64), ValueError, "got tuple"),
    ("fp8_gemm_nt", "recipe", (1, 64, 128), ValueError, "got tuple"),
    ("fp8_gemm_nt", "recipe_a", (1, 128), TypeError, "expected"),
    ("fp8_gemm_nt", "compiled_dims", "xy", ValueError, "letters"),
    ("fp8_gemm_nt", "disable_ue8m0_cast", False, ValueError, "True or None"),
    ("m_grouped_contiguous", "use_psum_layout", 1, TypeError, "a bool"),
    ("m_grouped_contiguous", "expected_m_for_psum_layout", 5, ValueError, "expected None"),
    ("m_grouped_masked", "expected_m", None, TypeError, "an integer"),
    ("m_grouped_masked", "expected_m", -1, ValueError, "at least 0"),
    ("k_grouped", "ks_cpu", [3, 5], ValueError, "3 integers"),
    ("k_grouped", "ks_cpu", [3, 0, 6], ValueError, "sum of 8"),
    ("k_grouped", "ks_cpu", [9, -1, 0], ValueError, "at least 0"),
    ("k_grouped", "recipe", (1, 128, 128), ValueError, "got tuple"),
    ("k_grouped", "use_psum_layout", True, ValueError, "expected False"),
]


@pytest.mark.parametrize(("call", "option", "value", "kind", "pattern"), OPTIONS)
def test_options(call: str, option: str, value: Any, kind: Any, pattern: str) -> None:
    arguments = {**CALLS[call][1](), option: value}
    named = "recipe_b" if option == "recipe_a" else option
    expect(call, arguments, kind, named, pattern.replace("(1, 1, 128)", r"\(1, 1, 128\)"))


PAIRS = [
    (call, name)
    for call, (_, build) in CALLS.items()
    for name, value in build().items()
    if isinstance(value, tuple) and isinstance(value[0], torch.Tensor)
]


@pytest.mark.parametrize(("call", "name"), PAIRS)
def test_pairs(call: str, name: str) -> None:
    arguments = CALLS[call][1]()
    x, scale = arguments[name]
    expect(call, {**arguments, name: x}, TypeError, name, r"tuple \(tensor, scale\), got Tensor")
    expect(call, {**arguments, name: (x,)}, ValueError, name, r"got 1 items")
    expect(call, {**arguments, name: (x, scale, scale)}, ValueError, name, "got 3 items")
    expect(call, {**arguments, name: None}, TypeError, name, "got NoneType")


def test_combinations() -> None:
    arguments = masked("8bit")
    bad = {**arguments, "enable_overlap": False}
    expect("masked_moe_gemm_8bit", bad, ValueError, "signal", "expected None")
    bad = {**bmm_fp8(), "out_dtype": FP16}
    expect("bmm_fp8", bad, TypeError, "out", "torch.float16, got torch.bfloat16")
    bad = {**bmm_fp8(), "out_dtype": E4M3, "out": None, "output_scale": None}
    expect("bmm_fp8", bad, ValueError, "out_dtype", "got torch.float8_e4m3fn")
    bad = {**groupwise(), "output_scale": None}
    expect("gemm_fp8_nt_groupwise", bad, TypeError, "out", "bfloat16, got torch.float8_e4m3fn")
    bad = {**groupwise(), "out": torch.zeros(T, N, dtype=BF16)}
    expect("gemm_fp8_nt_groupwise", bad, TypeError, "out", "e4m3fn, got torch.bfloat16")
    for option in ("recipe_a", "recipe_b"):
        bad = {**deep_dense(), "recipe": (1, 1, 128), option: (1, 128)}
        expect("fp8_gemm_nt", bad, ValueError, "recipe", "None beside")


@pytest.mark.parametrize(
    ("layout", "mode"), [("K", "per_token"), ("M", "per_expert"), ("K", "psum_expert")]
)
def test_info_of_another_mode(layout: str, mode: str) -> None:
    arguments = {**ragged_m("8bit"), "gemm_mode": mode}
    a, scale = arguments["input_a"]
    if layout == "M":
        expect(
            "ragged_m_moe_gemm_8bit",
            {**arguments, "major_a_mode": "M"},
            ValueError,
            "input_a[0]",
            "T to be contiguous",
        )
        arguments = {**arguments, "major_a_mode": "M", "input_a": (a.t().contiguous().t(), scale)}
    wrong = i32(1, 2, 3) if mode == "per_token" else i32(*range(T))
    bad = {**arguments, "ragged_tokens_info": wrong}
    expect("ragged_m_moe_gemm_8bit", bad, ValueError, "ragged_tokens_info", r"\(R\)")

"""Names, order and defaults of the published functions, by hand from their documentation."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from mate_plugin.kernels import deep_gemm, gemm

REQUIRED = inspect.Parameter.empty

_RAGGED_M = [
    ("input_a", REQUIRED),
    ("input_b", REQUIRED),
    ("ragged_tokens_info", REQUIRED),
    ("out", REQUIRED),
    ("gemm_mode", "per_token"),
    ("major_a_mode", "K"),
    ("major_b_mode", "K"),
    ("scale_granularity_mnk", None),
    ("num_mp", None),
    ("alignment_m", None),
]
_RAGGED_K = [
    ("input_a", REQUIRED),
    ("input_b", REQUIRED),
    ("ragged_tokens_info", REQUIRED),
    ("out", REQUIRED),
    ("gemm_mode", "per_expert"),
    ("major_a_mode", "M"),
    ("major_b_mode", "N"),
    ("scale_granularity_mnk", None),
    ("num_mp", None),
]
_MASKED = [
    ("input_a", REQUIRED),
    ("input_b", REQUIRED),
    ("masked_tokens_info", REQUIRED),
    ("out", REQUIRED),
    ("scale_granularity_mnk", None),
    ("expect_tokens", None),
    ("enable_overlap", False),
    ("signal", None),
]


def without(parameters: list[tuple[str, Any]], name: str) -> list[tuple[str, Any]]:
    return [entry for entry in parameters if entry[0] != name]


PUBLISHED: dict[str, list[tuple[str, Any]]] = {
    "ragged_m_moe_gemm_8bit": _RAGGED_M,
    "ragged_k_moe_gemm_8bit": _RAGGED_K,
    "masked_moe_gemm_8bit": _MASKED,
    "bmm_fp16": [
        ("a", REQUIRED),
        ("b", REQUIRED),
        ("out_dtype", REQUIRED),
        ("out", None),
        ("backend", "auto"),
        ("c", None),
    ],
    "bmm_fp8": [
        ("a", REQUIRED),
        ("b", REQUIRED),
        ("a_scale", REQUIRED),
        ("b_scale", REQUIRED),
        ("out_dtype", REQUIRED),
        ("out", None),
        ("backend", "auto"),
        ("scale_granularity_mnk", None),
        ("output_scale", None),
    ],
    "gemm_fp8_nt_groupwise": [
        ("a", REQUIRED),
        ("b", REQUIRED),
        ("a_scale", REQUIRED),
        ("b_scale", REQUIRED),
        ("scale_major_mode", None),
        ("mma_sm", None),
        ("scale_granularity_mnk", None),
        ("out", None),
        ("out_dtype", None),
        ("backend", "auto"),
        ("output_scale", None),
    ],
    # The vendor's library has these; they are not in the published pages.
    "ragged_m_moe_gemm_16bit": without(_RAGGED_M, "scale_granularity_mnk"),
    "ragged_k_moe_gemm_16bit": without(_RAGGED_K, "scale_granularity_mnk"),
    "masked_moe_gemm_16bit": [
        ("a", REQUIRED),
        ("b", REQUIRED),
        *without(_MASKED[2:], "scale_granularity_mnk"),
    ],
}

INDEXER: dict[str, list[tuple[str, Any]]] = {
    "get_paged_mqa_logits_metadata": [
        ("context_lens", REQUIRED),
        ("block_kv", REQUIRED),
        ("num_mps", 0),
    ],
    "fp8_paged_mqa_logits": [
        ("q", REQUIRED),
        ("fused_kv_cache", REQUIRED),
        ("weights", REQUIRED),
        ("context_lens", REQUIRED),
        ("block_table", REQUIRED),
        ("schedule_meta", REQUIRED),
        ("max_context_len", REQUIRED),
        ("clean_logits", REQUIRED),
    ],
}

# As DeepGEMM's own bindings list them, up to the arguments that only some GPUs know.
DEEP_GEMM: dict[str, list[str]] = {
    "fp8_gemm_nt": ["a", "b", "d", "c", "recipe", "recipe_a", "recipe_b", "compiled_dims"],
    "m_grouped_fp8_gemm_nt_contiguous": ["a", "b", "d", "grouped_layout", "recipe"],
    "m_grouped_fp8_gemm_nt_masked": ["a", "b", "d", "masked_m", "expected_m", "recipe"],
    "k_grouped_fp8_gemm_tn_contiguous": [
        *("a", "b", "d", "ks_cpu", "grouped_layout", "c", "recipe", "compiled_dims")
    ],
    "get_mk_alignment_for_contiguous_layout": [],
}


def signature(function: Any) -> list[tuple[str, Any]]:
    parameters = inspect.signature(function).parameters.values()
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters if p.default is REQUIRED)
    return [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("name", PUBLISHED)
def test_gemm(name: str) -> None:
    assert signature(getattr(gemm, name)) == PUBLISHED[name]


@pytest.mark.parametrize("name", INDEXER)
def test_indexer(name: str) -> None:
    assert signature(getattr(deep_gemm, name)) == INDEXER[name]


@pytest.mark.parametrize("name", DEEP_GEMM)
def test_names_of_deep_gemm(name: str) -> None:
    names = [parameter for parameter, _ in signature(getattr(deep_gemm, name))]
    assert names[: len(DEEP_GEMM[name])] == DEEP_GEMM[name]


@pytest.mark.parametrize("module", [gemm, deep_gemm])
def test_every_public_function_documents_its_arguments(module: Any) -> None:
    for name in module.__all__:
        function = getattr(module, name)
        text = inspect.getdoc(function) or ""
        for parameter in inspect.signature(function).parameters:
            assert parameter in text, f"{name} says nothing of {parameter}"
        if name != "get_mk_alignment_for_contiguous_layout":
            assert "Raises:" in text, f"{name} says nothing of its errors"

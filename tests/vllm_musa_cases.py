"""What test_vllm_musa.py runs inside a process with vLLM and a simulated Moore Threads GPU."""

from __future__ import annotations

import fake_musa_library
import torch
from indexer_cases import flat_case, paged_case
from vllm_device_cases import calls, compiled, expert_map, experts, install, linear

from mate_plugin.kernels import library

__all__ = ["compiled", "expert_map", "experts", "linear", "scores", "without_kernels"]
BLOCK, DEPTH = 64, 128


def scores() -> None:
    """vLLM's wrappers for DeepGEMM take tensors of the device to our functions, asked by nobody."""
    from vllm.utils import deep_gemm

    hook = install()["vllm.deep_gemm"]
    assert hook.installed, hook.reason
    with torch.device("musa"):
        case = paged_case(1, [100, 0, 65], 1, heads=32, depth=DEPTH)
        flat = flat_case(2, rows=5, tokens=70, heads=32, depth=DEPTH)
        expected, flat_expected = case.reference(), flat.reference()
    schedule = deep_gemm.get_paged_mqa_logits_metadata(case.context_lens, BLOCK, 5)
    found = deep_gemm.fp8_fp4_paged_mqa_logits(
        (case.q, None),
        case.cache,
        case.weights,
        case.context_lens,
        case.block_table,
        schedule,
        case.max_context_len,
        clean_logits=True,
    )
    _same(found, expected)
    found = deep_gemm.fp8_fp4_mqa_logits(
        (flat.q, None), flat.kv, flat.weights, flat.start, flat.end, clean_logits=True
    )
    _same(found, flat_expected)
    assert set(calls()) == {"paged_mqa_metadata", "paged_mqa_logits", "mqa_logits"}


def without_kernels() -> None:
    """A wish that nothing can serve is answered with the reason."""
    library.find = fake_musa_library.elsewhere
    hooks = install()
    for name in ("vllm.moe", "vllm.linear", "vllm.deep_gemm"):
        assert hooks[name].wanted
        assert not hooks[name].installed
        assert "libmate_musa.so is missing" in hooks[name].reason, hooks[name].reason


def _same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.device.type == "musa"
    torch.testing.assert_close(found.cpu().double(), expected.cpu(), rtol=1e-4, atol=1e-3)

"""The library that serves the simulated device."""

from __future__ import annotations

import torch
from cmake_build import entries
from musa_contract import require_device
from test_cuda_build import HOST_ENTRIES

from mate_plugin.kernels import gemm, library, select

NATIVE = require_device()


def test_it_has_the_entries_of_the_core() -> None:
    core = library.find(library.LIBRARIES["cpu"])
    assert core is not None
    assert entries(core) - HOST_ENTRIES <= entries(NATIVE)


def test_its_kernels_are_chosen_and_counted() -> None:
    choice = select.choose("batched_gemm", "musa:0")
    assert choice.impl == "portable"
    assert choice.reason == "the vendor's mate is not installed; the only kernels of this op"
    a = torch.randn(5, 64, dtype=torch.bfloat16)
    library.reset_counters()
    out = gemm.bmm_fp16(a[None], a.t()[None], torch.bfloat16)
    (count,) = library.counters()
    assert (count["op"], count["impl"], count["calls"]) == ("batched_gemm", "portable", 1)
    torch.testing.assert_close(out[0].float(), a.float() @ a.float().t(), rtol=1e-2, atol=1e-2)

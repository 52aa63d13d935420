"""Which kernels serve a call: the best that fit, or those that MATE_PLUGIN_IMPL names."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from gemm_cases import BF16, E4M3, Maker
from gpu_contract import require_gpu

from mate_plugin.kernels import gemm, library, select

require_gpu()
HOPPER = torch.cuda.get_device_capability() == (9, 0)
BEST = "sm90a" if HOPPER else "portable"
hopper = pytest.mark.skipif(not HOPPER, reason="needs compute capability 9.0")

CODE = """
import json, sys
import torch
from mate_plugin.kernels import deep_gemm, gemm, library, select
from mate_plugin.kernels.quant import per_token_group_quant_fp8
torch.set_default_device("cuda")
torch.manual_seed(1)
size = int(sys.argv[1])
a = per_token_group_quant_fp8(torch.randn(100, size))
b = per_token_group_quant_fp8(torch.randn(256, size))[0], torch.ones(2, -(-size // 128))
library.reset_counters()
out = gemm.gemm_fp8_nt_groupwise(a[0], b[0], a[1], b[1])
exact = (a[0].double() * a[1].double().repeat_interleave(128, 1)[:, :size]) @ b[0].double().t()
error = float((out.double() - exact).abs().max() / exact.abs().max())
(count,) = library.counters()
choice = select.choose("batched_gemm", "cuda")
print(json.dumps([count["impl"], count["calls"], choice.impl, choice.reason, error]))
"""


def in_process(impl: str, size: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE, str(size)],
        env={**os.environ, "MATE_PLUGIN_IMPL": impl},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("impl", "size", "served", "chosen", "reason"),
    [
        ("", 512, BEST, BEST, "compute capability"),
        ("auto", 512, BEST, BEST, "compute capability"),
        ("auto", 500, "portable", BEST, "compute capability"),
        ("portable", 512, "portable", "portable", "forced by MATE_PLUGIN_IMPL"),
        pytest.param("sm90a", 512, "sm90a", "sm90a", "forced by MATE_PLUGIN_IMPL", marks=hopper),
    ],
)
def test_an_implementation_can_be_forced(
    impl: str, size: int, served: str, chosen: str, reason: str
) -> None:
    ran = in_process(impl, size)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result[:3] == [served, 1, chosen]
    assert reason in result[3]
    assert result[4] < 5e-3


@hopper
def test_forcing_what_does_not_fit_says_why() -> None:
    ran = in_process("sm90a", 500)
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: MATE_PLUGIN_IMPL: expected auto or portable, got 'sm90a'")


def test_an_unknown_implementation_is_refused() -> None:
    ran = in_process("sm100", 512)
    assert ran.returncode == 1
    known = "auto, portable, sm90a, vendor, tilelang"
    assert f"MATE_PLUGIN_IMPL: expected one of {known}, got 'sm100'" in ran.stderr


def test_counters_tell_the_implementations_apart() -> None:
    make = Maker(1)

    def product(k: int) -> None:
        a, b = make.normal(70, k, dtype=E4M3), make.normal(128, k, dtype=E4M3)
        blocks = -(-k // 128)
        gemm.gemm_fp8_nt_groupwise(a, b, make.scale(70, blocks), make.scale(1, blocks))

    library.reset_counters()
    for k in (256, 256, 250):
        product(k)
    found = {row["impl"]: row["calls"] for row in library.counters()}
    best = select.choose("batched_gemm", "cuda").impl
    assert found == ({"portable": 3} if best == "portable" else {best: 2, "portable": 1})


def test_a_cpu_and_a_gpu_are_served_in_one_process() -> None:
    a, b = torch.randn(2, 3, 40, dtype=BF16), torch.randn(2, 40, 20, dtype=BF16)
    there = gemm.bmm_fp16(a, b, torch.float32)
    here = gemm.bmm_fp16(a.cpu(), b.cpu(), torch.float32)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"^b: expected device cuda:0 \(that of a\), got cpu"):
        gemm.bmm_fp16(a, b.cpu(), BF16)


@pytest.mark.parametrize("op", ["sparse_mla", "fused_experts", "pack_weights"])
def test_ops_without_kernels_say_so(op: str) -> None:
    choice = select.choose(op, "cuda")
    assert choice.impl is None
    assert choice.reason == "this op has no CUDA kernels in this version"


def test_packed_weights_are_refused() -> None:
    a, packed = torch.zeros(2, 64, dtype=BF16), torch.zeros(1, 2, 16, 16, 4, dtype=torch.uint8)
    weights = packed.view(E4M3), torch.ones(1, 1, 1)
    info = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="packed weights: expected rows on a GPU"):
        gemm.ragged_m_moe_gemm_w8a16(a, weights, info, torch.zeros(2, 32, dtype=BF16))

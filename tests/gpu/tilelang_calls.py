"""Cases of test_tilelang_kernels.py, for processes with MATE_PLUGIN_IMPL=tilelang: name one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
import torch
from devices import captured
from gemm_cases import SENTINEL
from tilelang_cases import assert_masked, assert_ragged, masked_case, psum_layout, ragged_case

from mate_plugin import report
from mate_plugin.kernels import gemm, library, select
from mate_plugin.kernels.reference import gemm as oracle

N, K = 392, 1104
OURS = {"portable", "sm90a"}


def impls() -> dict[str, int]:
    """Calls by implementation since the last time."""
    found = {row["impl"]: row["calls"] for row in library.counters()}
    library.reset_counters()
    return found


def empty(*shape: int) -> torch.Tensor:
    return torch.full(shape, SENTINEL, dtype=torch.bfloat16)


def ragged(a: Any, b: Any, info: torch.Tensor, out: torch.Tensor, mode: Any) -> torch.Tensor:
    return gemm.ragged_m_moe_gemm_8bit(a, b, info, out, mode)


def serves() -> None:
    for op in ("ragged_m_gemm", "masked_gemm"):
        assert select.choose(op, "cuda").impl == "tilelang"
    assert select.choose("batched_gemm", "cuda").impl in OURS
    for mode in ("per_token", "psum_expert"):
        a, b, info, ids = ragged_case(mode, 128, [100, 0, 128, 300], N, K)
        for _ in range(2):
            assert_ragged(ragged(a, b, info, empty(len(ids), N), mode), a, b, ids)
    assert impls() == {"tilelang": 4}
    a, b, counts, unused = masked_case([0, 170, 128, 200], 200, N, K)
    for expected in (None, 30):
        out = gemm.masked_moe_gemm_8bit(a, b, counts, empty(*unused.shape, N), None, expected)
        assert_masked(out, a, b, counts, unused)
    assert impls() == {"tilelang": 2}
    assert not report.refusals("tilelang")


def refuses() -> None:
    a, b, info, ids = ragged_case("per_token", 128, [100, 30], 132, K)
    with pytest.raises(NotImplementedError, match=r"=tilelang, but TileLang: N = 132 is no mult"):
        ragged(a, b, info, empty(len(ids), 132), "per_token")
    a, b, counts, _ = masked_case([7, 30], 64, N, K)
    with pytest.raises(NotImplementedError, match="the call wants an overlap signal"):
        gemm.masked_moe_gemm_8bit(a, b, counts, None, enable_overlap=True)
    assert impls() == {}


def other_functions_are_ours() -> None:
    a, b = torch.randn(2, 64, 128).bfloat16(), torch.randn(2, 128, 64).bfloat16()
    out = gemm.bmm_fp16(a, b, torch.float32)
    torch.testing.assert_close(out, torch.bmm(a.float(), b.float()), rtol=1e-3, atol=1e-3)
    (impl,) = impls()
    assert impl in OURS


def graphs_follow_what_changes() -> None:
    for mode in ("per_token", "psum_expert"):
        a, b, info, ids = ragged_case(mode, 128, [100, 128, 300], N, K)
        a[0].view(torch.uint8)[ids < 0] = 0
        out = empty(len(ids), N)
        ragged(a, b, info, out, mode)
        graph, _ = captured(lambda a=a, b=b, i=info, o=out, m=mode: ragged(a, b, i, o, m))
        for counts in ([128, 5, 1], [0, 0, 300], [0, 0, 0], [256, 128, 128]):
            ends, rows = psum_layout(counts, 128)
            new = oracle.expert_of_row(ends.cpu(), rows, "psum_expert", 128).to(info.device)
            new = torch.nn.functional.pad(new, (0, len(ids) - rows), value=-1)
            info.copy_(new if mode == "per_token" else ends)
            out.fill_(SENTINEL)
            graph.replay()
            torch.cuda.synchronize()
            assert_ragged(out, a, b, new)
    a, b, info, unused = masked_case([200, 200, 200], 200, N, K)
    out = gemm.masked_moe_gemm_8bit(a, b, info, empty(*unused.shape, N))
    graph, _ = captured(lambda: gemm.masked_moe_gemm_8bit(a, b, info, out))
    for counts in ([200, 0, 1], [0, 0, 0], [64, 65, 128]):
        info.copy_(torch.tensor(counts, dtype=torch.int32))
        out.fill_(SENTINEL)
        graph.replay()
        torch.cuda.synchronize()
        assert_masked(out, a, b, info, torch.arange(200) >= info[:, None])
    assert set(impls()) == {"tilelang"}


def a_capture_before_the_first_call_is_ours() -> None:
    a, b, info, ids = ragged_case("psum_expert", 128, [100, 128], N, K)
    out = empty(len(ids), N)
    graph, _ = captured(lambda: ragged(a, b, info, out, "psum_expert"))
    (refusal,) = report.refusals("tilelang")
    assert refusal["reason"].endswith("a graph is captured before the first call of this shape")
    assert set(impls()) <= OURS
    assert bool((out == SENTINEL).all())
    graph.replay()
    torch.cuda.synchronize()
    assert_ragged(out, a, b, ids)
    ragged(a, b, info, out, "psum_expert")
    assert impls() == {"tilelang": 1}


def the_current_stream_runs_it() -> None:
    a, b, info, ids = ragged_case("psum_expert", 128, [100, 128], N, K)
    out = empty(len(ids), N)
    ragged(a, b, info, out, "psum_expert")
    codes = a[0].clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    a[0].view(torch.uint8).zero_()
    out.fill_(SENTINEL)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # some 100 ms: what does not wait for it reads zeros
        a[0].copy_(codes)
        ragged(a, b, info, out, "psum_expert")
    side.synchronize()
    assert_ragged(out, a, b, ids)


if __name__ == "__main__":
    torch.set_default_device("cuda")
    globals()[sys.argv[1]]()

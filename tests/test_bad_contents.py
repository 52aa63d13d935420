"""Contents of index tensors: refused where asked, and never the end of the process."""

from __future__ import annotations

import pytest
import torch
from api_calls import (
    CALLS,
    MASKED,
    RAGGED_K,
    RAGGED_M,
    Arguments,
    E,
    N,
    T,
    expect,
    fp8_pair,
    i32,
)
from gemm_cases import Maker

from mate_plugin.kernels import gemm
from mate_plugin.kernels.checks import set_index_checks

WILD = [-(2**31), -2, E, 2**31 - 1]
CONTENTS: list[tuple[str, Arguments, str]] = [
    *(
        (
            call,
            {"ragged_tokens_info": i32(0, 1, 2, -1, bad, 0, 0, 0), "gemm_mode": "per_token"},
            rf"\[-1, 3\), got {bad} at row 4",
        )
        for call in RAGGED_M
        for bad in WILD
    ),
    *(
        (call, {"ragged_tokens_info": i32(*ends), "gemm_mode": "psum_expert"}, "do not fall")
        for call in RAGGED_M
        for ends in ((3, 2, 8), (1, 2, T + 1), (-1, 2, 3), (-(2**31), 2**31 - 1, 0))
    ),
    *(
        (
            call,
            {"ragged_tokens_info": i32(*counts), "gemm_mode": "per_expert"},
            "negative|at most 8",
        )
        for call in RAGGED_M
        for counts in ((3, -1, 2), (3, 3, 3), (2**31 - 1, 2**31 - 1, 2), (-(2**31), 0, 0))
    ),
    *(
        (call, {"masked_tokens_info": i32(*counts)}, f"a count from 0 to {T}")
        for call in MASKED
        for counts in ((1, 2, T + 1), (-1, 2, 3), (2**31 - 1, -(2**31), 0))
    ),
    *(
        (call, {"ragged_tokens_info": i32(*counts)}, "negative|at most 8 rows")
        for call in RAGGED_K
        for counts in ((3, 3, 3), (-1, 2, 3), (2**31 - 1, 2**31 - 1, -5))
    ),
    ("m_grouped_contiguous", {"grouped_layout": i32(0, 1, 2, 3, 0, 0, 0, 0)}, "got 3 at row 3"),
    ("m_grouped_masked", {"masked_m": i32(0, 0, T + 1)}, "a count from 0"),
    ("k_grouped", {"grouped_layout": i32(5, 0, 3)}, r"\[3, 0, 5\] \(ks_cpu\)"),
    *(("top_k", {"lengths": i32(*[bad] * T)}, f"got {bad} at row 0") for bad in (-1, N + 1)),
    *(("top_k", {"starts": i32(*[bad] * T)}, f"got {bad} at row 0") for bad in WILD[:2]),
    *(
        ("index_topk", {"query_start_loc": i32(*starts)}, "got")
        for starts in ((1, 2, 3), (0, 5, 4), (0, 1, T + 1), (0, 2**31 - 1, -5))
    ),
    *(
        ("index_topk", {"context_lens": i32(*lens)}, "got")
        for lens in ((100, 5), (-1, 130), (-(2**31), 130))
    ),
]


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(("call", "changes", "pattern"), CONTENTS)
def test_contents_where_asked(call: str, changes: Arguments, pattern: str) -> None:
    expect(call, {**CALLS[call][1](), **changes}, ValueError, next(iter(changes)), pattern)


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("call", CALLS)
def test_good_contents_pass(call: str) -> None:
    function, build = CALLS[call]
    function(**build())


@pytest.mark.parametrize(("call", "changes", "pattern"), CONTENTS)
def test_bad_contents_do_not_crash(call: str, changes: Arguments, pattern: str) -> None:
    del pattern
    before = set_index_checks(False)
    try:
        CALLS[call][0](**{**CALLS[call][1](), **changes})
    finally:
        set_index_checks(before)


def many_short_experts() -> Arguments:
    """Counts that fit the rows but need 400 scale rows where there is one."""
    make = Maker(12)
    return {
        "input_a": fp8_pair(make, (400, 4096), 1, 4096),
        "input_b": fp8_pair(make, (400, 8), 1, 8),
        "ragged_tokens_info": torch.ones(400, dtype=torch.int32),
        "out": torch.zeros(400, 4096, 8),
    }


@pytest.mark.usefixtures("checked")
def test_missing_scale_rows_where_asked() -> None:
    pattern = "at most 1 scale rows in all, got 400"
    expect(
        "ragged_k_moe_gemm_8bit", many_short_experts(), ValueError, "ragged_tokens_info", pattern
    )


def test_missing_scale_rows_do_not_crash() -> None:
    gemm.ragged_k_moe_gemm_8bit(**many_short_experts())

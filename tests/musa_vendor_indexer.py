"""Cases of test_vendor.py: scores of the indexer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import indexer_cases
import torch
from gemm_cases import E5M2
from musa_vendor_calls import calls, musa, refused, served

from mate_plugin.kernels import deep_gemm, library
from mate_plugin.kernels.reference import indexer
from mate_plugin.kernels.vendor import package

PROCESSORS = 6


def paged(case: indexer_cases.PagedCase, processors: int = 3, **options: Any) -> torch.Tensor:
    lens = musa(case.context_lens)
    schedule = deep_gemm.get_paged_mqa_logits_metadata(lens, case.cache.shape[1], processors)
    return deep_gemm.fp8_paged_mqa_logits(
        *musa((case.q, case.cache, case.weights)),
        lens,
        musa(case.block_table),
        schedule,
        case.max_context_len,
        options.pop("clean_logits", True),
        **options,
    )


def check_paged(case: indexer_cases.PagedCase, found: torch.Tensor) -> None:
    codes, scales = indexer.split_cache(case.cache)
    magnitudes = indexer.paged_mqa_logits(
        case.q.float().abs(),
        indexer_cases.fuse_cache(codes.float().abs().to(codes.dtype), scales.abs()),
        case.weights.abs(),
        case.context_lens,
        case.block_table,
        case.max_context_len,
        0.0,
    )
    heads, depth = case.q.shape[2:]
    indexer_cases.assert_close(found.cpu(), case.reference(), magnitudes, depth, heads)


def paged_logits() -> None:
    schedule, logits = "get_paged_mqa_logits_metadata", "fp8_paged_mqa_logits"
    for next_n, heads, depth in ((1, 32, 128), (2, 64, 64), (4, 32, 32)):
        case = indexer_cases.paged_case(8, [300, 4, 0, 65], next_n, heads, depth)
        calls()
        found = paged(case)
        one, two = calls()
        assert (one["num_mps"], one["block_kv"]) == (3, 64)
        assert two["schedule_meta"].shape == (4, 2)
        check_paged(case, found)
        # Nothing was copied: it is the vendor's tensor.
        assert found.stride() == (512, 1)
        room = torch.empty(len(found), found.shape[1] + 3, device="musa")[:, : found.shape[1]]
        assert paged(case, out=room) is room
        assert torch.equal(room.cpu(), found.cpu())
    case = indexer_cases.paged_case(9, [[70], [1]], 1, 64, 128)
    check_paged(case, paged(case))
    kinds = {row["op"]: row["calls"] for row in library.counters() if row["impl"] == "vendor"}
    assert kinds == {"paged_mqa_metadata": 7, "paged_mqa_logits": 7}
    calls()
    unclean = paged(case, clean_logits=False)
    assert calls()[1]["clean_logits"] is False
    seen = case.visible()
    assert torch.equal(unclean.cpu()[seen], paged(case).cpu()[seen])
    whole = deep_gemm.get_paged_mqa_logits_metadata(musa(case.context_lens), 64)
    assert whole.shape == (PROCESSORS + 1, 2)
    want = indexer.paged_mqa_logits_metadata(case.context_lens, 64, PROCESSORS)
    assert torch.equal(whole.cpu(), want)
    assert {schedule, logits} <= {name for names in package.FUNCTIONS.values() for name in names}


def paged_refused() -> None:
    def logits(**options: Any) -> Callable[[], Any]:
        case = indexer_cases.paged_case(10, **({"lens": [100, 20], "heads": 32} | options))
        lens = musa(case.context_lens)
        schedule = musa(indexer.paged_mqa_logits_metadata(case.context_lens, 64, 3))
        return lambda: deep_gemm.fp8_paged_mqa_logits(
            *musa((case.q, case.cache, case.weights)),
            lens,
            musa(case.block_table),
            schedule,
            case.max_context_len,
            True,
        )

    refused("next_n is 3", logits(next_n=3))
    refused("there are 4 heads", logits(heads=4))
    refused("D is 16", logits(depth=16))
    refused("blocks of the cache hold 32 tokens", logits(block=32))
    refused("the queries are torch.float8_e5m2", logits(dtype=E5M2))
    # Of lengths that differ by draft the vendor schedules the last.
    trees = [[100, 30], [20, 20]]
    refused("context_lens differ by draft", logits(lens=trees, next_n=2))
    lens = torch.tensor(trees, dtype=torch.int32, device="musa")
    metadata = deep_gemm.get_paged_mqa_logits_metadata
    refused("context_lens differ by draft", lambda: metadata(lens, 64, 3))
    refused("context_lens is not contiguous", lambda: metadata(lens[:, 0], 64, 3))
    refused("block_kv is 16", lambda: metadata(lens[:, :1].contiguous(), 16, 3))
    refused("num_mps is more than the device has", lambda: metadata(lens[0], 64, 7))
    case = indexer_cases.paged_case(10, [100, 20], heads=32)
    schedule = metadata(musa(case.context_lens), 64, 3)
    operands = (
        *musa((case.q, case.cache, case.weights, case.context_lens, case.block_table)),
        schedule,
        case.max_context_len,
    )
    run = deep_gemm.fp8_paged_mqa_logits
    refused("clean_value is 0.0", lambda: run(*operands, True, clean_value=0.0))
    refused("num_mp is below", lambda: run(*operands, True, num_mp=2))
    run(*operands, True, num_mp=3)
    run(*operands, False, clean_value=0.0)


def flat_logits() -> None:
    for heads, depth in ((32, 128), (64, 32)):
        case = indexer_cases.flat_case(11, 9, 200, heads, depth)
        operands = musa((case.q, case.kv, case.weights, case.start, case.end))
        with served("fp8_mqa_logits"):
            found = deep_gemm.fp8_mqa_logits(*operands)
        indexer_cases.assert_close(found.cpu(), case.reference(), case.magnitude(), depth, heads)
        assert found.stride() == (256, 1)
        lengths = case.end - case.start
        columns = int(lengths.max())
        with served("fp8_mqa_logits") as seen:
            short = deep_gemm.fp8_mqa_logits(*operands, False, columns)
        assert (seen.max_seqlen_k, short.shape) == (columns, (9, columns))
        inside = torch.arange(columns) < lengths[:, None]
        assert torch.equal(inside, short.cpu() < 1e29)
        flat_refused(operands)


def flat_refused(operands: tuple[Any, ...]) -> None:
    """Of operands that are served."""
    run = deep_gemm.fp8_mqa_logits
    refused("num_mp has no effect", lambda: run(*operands, num_mp=2))
    refused("max_seqlen_k is more", lambda: run(*operands, False, 201))
    refused("clean_value is 0.0", lambda: run(*operands, clean_value=0.0))
    e5m2 = operands[1][0].to(E5M2), operands[1][1]
    refused("the keys are torch.float8_e5m2", lambda: run(operands[0], e5m2, *operands[2:]))

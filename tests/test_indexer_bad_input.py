"""Wrong arguments of the indexer's functions: a named error, and nothing written."""

from __future__ import annotations

import pytest
import torch
from indexer_cases import flat_case, paged_case

from mate_plugin.kernels.mqa_logits import (
    fp8_mqa_logits,
    fp8_paged_mqa_logits,
    get_paged_mqa_logits_metadata,
)

I32 = torch.int32


def paged_arguments() -> dict:
    case = paged_case(1, [100, 7], 2, 4, 32)
    return {
        "q": case.q,
        "fused_kv_cache": case.cache,
        "weights": case.weights,
        "context_lens": case.context_lens,
        "block_table": case.block_table,
        "schedule_meta": get_paged_mqa_logits_metadata(case.context_lens, 64, 2),
        "max_context_len": 100,
        "clean_logits": True,
        "out": torch.full((4, 100), 7.0),
    }


def flat_arguments() -> dict:
    case = flat_case(2, 3, 40)
    return {
        "q": case.q,
        "kv": case.kv,
        "weights": case.weights,
        "cu_seq_len_k_start": case.start,
        "cu_seq_len_k_end": case.end,
        "clean_logits": False,
        "out": torch.full((3, 40), 7.0),
    }


def fails(function, arguments: dict, name: str, value, error: type, message: str) -> None:
    arguments = {**arguments, name: value}
    with pytest.raises(error, match=message):
        function(**arguments)
    if isinstance(arguments["out"], torch.Tensor) and name != "out":
        assert arguments["out"].eq(7).all()


CACHE = torch.zeros(5, 64, 1, 36, dtype=torch.uint8)
Q = torch.zeros(2, 2, 4, 32)
E4M3 = torch.float8_e4m3fn

PAGED = [
    ("q", None, TypeError, "^q: expected a torch.Tensor, got NoneType"),
    ("q", Q, TypeError, "^q: expected dtype .*float8_e4m3fn.* got torch.float32"),
    ("q", Q[0].to(E4M3), ValueError, r"^q: expected shape"),
    ("q", Q.to(E4M3).transpose(2, 3).contiguous().transpose(2, 3), ValueError, "^q: .*contiguous"),
    ("q", torch.zeros(2, 2, 4, 24).to(E4M3), ValueError, r"^fused_kv_cache: expected shape"),
    ("q", torch.zeros(2, 2, 4, 64).to(E4M3), ValueError, r"^fused_kv_cache: expected shape"),
    ("fused_kv_cache", CACHE.to(torch.int8), TypeError, "^fused_kv_cache: .* got torch.int8"),
    ("fused_kv_cache", CACHE[:, :, 0], ValueError, "^fused_kv_cache: expected shape"),
    ("fused_kv_cache", CACHE[:, :48], ValueError, "^fused_kv_cache: block size: .*power of two"),
    ("fused_kv_cache", CACHE[:, :8], ValueError, "^fused_kv_cache: block size: .*at least 16"),
    ("fused_kv_cache", CACHE[:, ::2], ValueError, "^fused_kv_cache: .*each block to be contiguous"),
    (
        "fused_kv_cache",
        torch.zeros(5, 64 * 36 + 2, dtype=torch.uint8).as_strided(CACHE.shape, (2306, 36, 36, 1)),
        ValueError,
        r"^fused_kv_cache: expected stride\(0\) to be a multiple of 4, got 2306",
    ),
    ("weights", torch.zeros(4, 4).half(), TypeError, "^weights: .* got torch.float16"),
    ("weights", torch.zeros(2, 4), ValueError, r"^weights: .*\(4, 4\).*, got \(2, 4\)"),
    ("context_lens", [100, 7], TypeError, "^context_lens: expected a torch.Tensor"),
    ("context_lens", torch.tensor([100, 7]), TypeError, "^context_lens: .*got torch.int64"),
    ("context_lens", torch.zeros(3, dtype=I32), ValueError, r"^context_lens: .*got \(3,\)"),
    ("context_lens", torch.zeros(2, 1, dtype=I32), ValueError, r"^context_lens: .*got \(2, 1\)"),
    ("context_lens", torch.zeros((), dtype=I32), ValueError, r"^context_lens: .*got \(\)"),
    ("block_table", torch.zeros(2, 2), TypeError, "^block_table: .*got torch.float32"),
    ("block_table", torch.zeros(1, 2, dtype=I32), ValueError, r"^block_table: .*got \(1, 2\)"),
    ("block_table", torch.zeros(2, 2, dtype=I32).t(), ValueError, "^block_table: .*contiguous"),
    ("schedule_meta", None, TypeError, "^schedule_meta: expected a torch.Tensor"),
    ("schedule_meta", torch.zeros(3, 3, dtype=I32), ValueError, r"^schedule_meta: .*got \(3, 3\)"),
    ("schedule_meta", torch.zeros(1, 2, dtype=I32), ValueError, "^schedule_meta: .*one processor"),
    ("max_context_len", -1, ValueError, "^max_context_len: expected at least 0, got -1"),
    ("max_context_len", 100.0, TypeError, "^max_context_len: expected an integer"),
    ("max_context_len", 99, ValueError, r"^out: .*\(4, 99\).*got \(4, 100\)"),
    ("clean_logits", 1, TypeError, "^clean_logits: expected a bool, got int 1"),
    ("clean_value", None, TypeError, "^clean_value: expected a number"),
    ("out", torch.zeros(4, 100).half(), TypeError, "^out: .*got torch.float16"),
    ("out", torch.zeros(4, 200)[:, ::2], ValueError, "^out: .*contiguous"),
    ("out", torch.zeros(1, 100).expand(4, 100), ValueError, "^out: .*overlap"),
    ("num_mp", 0, ValueError, "^num_mp: expected at least 1, got 0"),
]

FLAT = [
    ("q", Q.to(E4M3), ValueError, "^q: expected shape"),
    ("kv", torch.zeros(2), TypeError, "^kv: expected a tuple"),
    ("kv", (torch.zeros(40, 32), torch.zeros(40)), TypeError, r"^kv\[0\]: expected dtype"),
    ("kv", (torch.zeros(40, 16).to(E4M3), torch.zeros(40)), ValueError, r"^kv\[0\]: .*shape"),
    ("kv", (torch.zeros(40, 32).to(E4M3), torch.zeros(39)), ValueError, r"^kv\[1\]: .*shape"),
    ("kv", (torch.zeros(40, 32).to(E4M3), torch.zeros(40, 2)), ValueError, r"^kv\[1\]: .*shape"),
    ("weights", torch.zeros(3, 5), ValueError, "^weights: expected shape"),
    ("cu_seq_len_k_start", torch.zeros(3), TypeError, "^cu_seq_len_k_start: expected dtype"),
    ("cu_seq_len_k_end", torch.zeros(2, dtype=I32), ValueError, "^cu_seq_len_k_end: .*shape"),
    ("clean_logits", None, TypeError, "^clean_logits: expected a bool"),
    ("max_seqlen_k", -1, ValueError, "^max_seqlen_k: expected at least 0"),
    ("max_seqlen_k", True, TypeError, "^max_seqlen_k: expected an integer"),
    ("max_seqlen_k", 7, ValueError, r"^out: .*\(3, 7\).*got \(3, 40\)"),
    ("out", torch.zeros(3, 41), ValueError, "^out: expected shape"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), PAGED)
def test_paged_logits_refuse(name, value, error, message):
    fails(fp8_paged_mqa_logits, paged_arguments(), name, value, error, message)


@pytest.mark.parametrize(("name", "value", "error", "message"), FLAT)
def test_flat_logits_refuse(name, value, error, message):
    fails(fp8_mqa_logits, flat_arguments(), name, value, error, message)


def test_depths_that_are_no_multiple_of_16_are_refused():
    arguments = flat_arguments()
    arguments["q"] = torch.zeros(3, 4, 24).to(E4M3)
    kv = (torch.zeros(40, 24).to(E4M3), torch.zeros(40))
    fails(fp8_mqa_logits, arguments, "kv", kv, ValueError, "^q: .*multiple of 16, got D = 24")


def test_the_compressed_form_cannot_be_cleaned():
    arguments = {**flat_arguments(), "out": None, "clean_logits": True}
    message = "^clean_logits: expected False with max_seqlen_k = 9"
    fails(fp8_mqa_logits, arguments, "max_seqlen_k", 9, ValueError, message)


def test_the_result_may_not_overlap_an_argument():
    arguments = paged_arguments()
    memory = torch.full((4, 100), 7.0)
    arguments["out"] = memory
    arguments["weights"] = memory.flatten()[:16].view(4, 4)
    with pytest.raises(ValueError, match=r"^out: .*overlaps weights"):
        fp8_paged_mqa_logits(**arguments)
    assert memory.eq(7).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2), 64), TypeError, "^context_lens: expected dtype"),
        ((torch.zeros(2, 2, 2, dtype=I32), 64), ValueError, "^context_lens: expected shape"),
        ((torch.zeros(2, dtype=I32), 48), ValueError, "^block_kv: .*power of two"),
        ((torch.zeros(2, dtype=I32), 8), ValueError, "^block_kv: expected at least 16"),
        ((torch.zeros(2, dtype=I32), None), TypeError, "^block_kv: expected an integer"),
        ((torch.zeros(2, dtype=I32), 64, -1), ValueError, "^num_mps: expected at least 0"),
        ((torch.zeros(2, dtype=I32), 64, 1.5), TypeError, "^num_mps: expected an integer"),
    ],
)
def test_schedule_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        get_paged_mqa_logits_metadata(*arguments)


@pytest.mark.usefixtures("checked")
def test_index_checks_accept_good_contents():
    fp8_paged_mqa_logits(**paged_arguments())
    fp8_mqa_logits(**flat_arguments())
    wide = paged_case(3, [[5, 90], [0, -4]], 2, 4, 32)
    wide.run()


@pytest.mark.usefixtures("checked")
def test_index_checks_name_the_request():
    arguments = paged_arguments()

    def refuse(name: str, value: object, message: str) -> None:
        fails(fp8_paged_mqa_logits, arguments, name, value, ValueError, message)

    long = torch.tensor([101, 7], dtype=I32)
    refuse("context_lens", long, "at most max_context_len = 100 tokens, got 101 for request 0")
    narrow = arguments["block_table"][:, :1]
    refuse("block_table", narrow, "expected 2 blocks of 64 tokens for request 0 of 100 tokens")
    table = arguments["block_table"].clone()
    table[0, 1] = 99
    refuse("block_table", table, "got 99 at column 1 of request 0, which has 100 tokens")
    table = arguments["block_table"].clone()
    table[1, 0] = -2
    refuse("block_table", table, "got -2 at column 0 of request 1, which has 7 tokens")
    other = arguments["schedule_meta"].clone()
    other[1, 1] = 5
    refuse("schedule_meta", other, r"processor 1 to start at .* \(1, 0\) .* got \(1, 5\)")


@pytest.mark.usefixtures("checked")
def test_index_checks_name_the_row():
    arguments = flat_arguments()

    def refuse(name: str, value: object, message: str) -> None:
        fails(fp8_mqa_logits, arguments, name, value, ValueError, message)

    start = torch.tensor([0, -1, 0], dtype=I32)
    refuse("cu_seq_len_k_start", start, r"within \[0, 40\), got \[-1, .*for row 1")
    end = torch.tensor([0, 0, 41], dtype=I32)
    refuse("cu_seq_len_k_end", end, r"got \[\d+, 41\) for row 2")
    arguments["cu_seq_len_k_start"] = torch.zeros(3, dtype=I32)
    arguments["cu_seq_len_k_end"] = torch.tensor([1, 9, 0], dtype=I32)
    arguments["out"] = None
    refuse("max_seqlen_k", 8, r"at least 9 for the range \[0, 9\) of row 1, got 8")

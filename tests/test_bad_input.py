"""Faults that any tensor can have: the error names the tensor, and nothing is written.

Each function has one valid call; every test spoils one of its tensors in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from api_calls import CALLS, K, N, T, bmm_fp16, expect, is_written, replaced, tensors
from gemm_cases import BF16, E4M3, F32

from mate_plugin.kernels import gemm

# Index tensors, one element of any rank, tensors of any strides, may be None.
INDICES = (
    "ragged_tokens_info",
    "masked_tokens_info",
    "grouped_layout",
    "masked_m",
    "request_of_token",
    "lengths",
    "starts",
    "query_start_loc",
    "context_lens",
    "slot_mapping",
)
ONE = {("bmm_fp8", "b_scale"), ("bmm_fp8", "output_scale")}
ANY_STRIDES = {*ONE, ("bmm_fp8", "a_scale"), ("k_grouped", "c"), ("index_topk", "weights")}
# Dimensions whose size nothing else depends on.
FREE = {
    "top_k": {"logits": (1,)},
    "sparse_mla": {"kv_cache": (0, 1), "indices": (1,), "block_table": (0, 1)},
    "prefix_mla": {"kv_cache": (0, 1), "block_table": (0, 1)},
    "index_topk": {"kv_cache": (0, 1), "block_table": (1,)},
    "quant_and_write_k": {"kv_cache": (0, 1), "slot_mapping": (0,), "k": (0,)},
    "gather_k": {"kv_cache": (0, 1), "block_table": (1,)},
    "write_latents": {"kv_cache": (0, 1), "slot_mapping": (0,)},
}
OPTIONAL = {
    **{name: ("out", "signal") for name in CALLS if name.startswith("masked")},
    "bmm_fp16": ("out", "c"),
    "bmm_fp8": ("out", "output_scale"),
    "gemm_fp8_nt_groupwise": ("out", "output_scale"),
    "gemm_w8a16_nt_groupwise": ("out",),
    "fp8_gemm_nt": ("c",),
    "k_grouped": ("c",),
    "sparse_mla": ("indices", "out"),
    "prefix_mla": ("lengths", "out"),
    "top_k": ("starts", "out"),
    "index_topk": ("out",),
    "gather_k": ("out_k", "out_scale"),
}


Named = tuple[str, str]
EVERY = [(call, name) for call, (_, build) in CALLS.items() for name, _ in tensors(build())]


def each(where: Callable[[Named], bool] = lambda _: True) -> Any:
    """Run a test for each tensor of each call (that satisfies ``where``)."""
    return pytest.mark.parametrize(("call", "name"), [named for named in EVERY if where(named)])


@pytest.mark.parametrize("call", CALLS)
def test_the_good_call_is_good(call: str) -> None:
    function, build = CALLS[call]
    function(**build())


@each()
def test_no_tensor(call: str, name: str) -> None:
    arguments = CALLS[call][1]()
    for value in (None, "text", 3, np.ones((T, K), np.float32), [1.0]):
        if value is None and name in OPTIONAL.get(call, ()):
            continue
        expect(call, replaced(arguments, name, value), TypeError, name, "expected a torch.Tensor")


@each()
def test_dtype(call: str, name: str) -> None:
    arguments = CALLS[call][1]()
    x = dict(tensors(arguments))[name].to(F32)
    for dtype in (torch.float64, torch.int8, torch.bool, torch.complex64):
        bad = replaced(arguments, name, x.to(dtype))
        expect(call, bad, TypeError, name, f"dtype .*got {dtype}")


@each(lambda named: named not in ONE)
def test_rank(call: str, name: str) -> None:
    arguments = CALLS[call][1]()
    x = dict(tensors(arguments))[name]
    for bad in (x.unsqueeze(0), x[..., 0]):
        expect(call, replaced(arguments, name, bad), ValueError, name, r"shape \(.*\) = \(.*got \(")


@each()
def test_size(call: str, name: str) -> None:
    """A wrong size is found where it contradicts an earlier argument."""
    arguments = CALLS[call][1]()
    x = dict(tensors(arguments))[name]
    for dim in set(range(x.dim())) - set(FREE.get(call, {}).get(name, ())):
        twice = torch.cat([x.to(F32), x.to(F32)], dim).to(x.dtype)
        if (call, name) == ("bmm_fp8", "b"):
            twice = twice.mT.contiguous().mT
        bad = replaced(arguments, name, twice)
        expect(call, bad, ValueError, None, "expected (shape|one element)|ks_cpu|rows for ks_cpu")


@each()
def test_device(call: str, name: str) -> None:
    arguments = CALLS[call][1]()
    x = dict(tensors(arguments))[name]
    bad = replaced(arguments, name, x.to("meta"))
    kind = r"(cpu|(cuda|musa):\d+|meta)"
    expect(call, bad, ValueError, None, rf"expected device {kind} \(that of .*\), got")


@pytest.mark.parametrize("call", CALLS)
def test_a_device_without_kernels(call: str) -> None:
    arguments = CALLS[call][1]()
    for name, x in list(tensors(arguments)):
        arguments = replaced(arguments, name, x.to("meta"))
    expect(call, arguments, NotImplementedError, None, r"not available on 'meta': no kernels")


def is_fp8(call: str, name: str) -> bool:
    return dict(tensors(CALLS[call][1]()))[name].dtype == E4M3


# torch has no sparse FP8 tensors, and where the type of a result is wrong this is found first.
@each(lambda named: named[1] != "out" and not is_fp8(*named))
def test_sparse(call: str, name: str) -> None:
    arguments = CALLS[call][1]()
    x = dict(tensors(arguments))[name]
    bad = replaced(arguments, name, x.to_sparse())
    expect(call, bad, TypeError, name, "expected a dense tensor")


@each(lambda named: named[1] not in INDICES and named not in ANY_STRIDES)
def test_stride(call: str, name: str) -> None:
    arguments = CALLS[call][1]()
    x = dict(tensors(arguments))[name]
    spread = torch.zeros(*[2 * size for size in x.shape], dtype=x.dtype)
    spread = spread[tuple(slice(None, None, 2) for _ in x.shape)]
    expect(call, replaced(arguments, name, spread), ValueError, name, "contiguous.*got strides")


@pytest.mark.parametrize("call", CALLS)
def test_written_tensors_do_not_overlap_themselves(call: str) -> None:
    arguments = CALLS[call][1]()
    for name, x in tensors(arguments):
        if is_written(call, name) and x.dim() > 1:
            bad = x[:1].clone().expand(x.shape)
            if x.shape[0] == 1:
                continue
            expect(call, replaced(arguments, name, bad), ValueError, name, "do not overlap")


def sharing(x: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both tensors again, in one memory in which ``out`` begins within the last bytes of ``x``."""
    start = (x.nbytes - 1) // 16 * 16
    room = torch.zeros(start + max(out.nbytes, 16), dtype=torch.uint8)
    parts = room[: x.nbytes], room[start : start + out.nbytes]
    return parts[0].view(x.dtype).view(x.shape), parts[1].view(out.dtype).view(out.shape)


@pytest.mark.parametrize("call", CALLS)
def test_written_tensors_share_no_memory(call: str) -> None:
    arguments = CALLS[call][1]()
    for written, out in tensors(arguments):
        if not is_written(call, written):
            continue
        for name, x in tensors(arguments):
            if name == written:
                continue
            like = x.mT if (call, name) == ("bmm_fp8", "b") else x
            shared_x, shared_out = sharing(like, out)
            shared_x = shared_x.mT if like is not x else shared_x
            bad = replaced(replaced(arguments, name, shared_x), written, shared_out)
            expect(call, bad, ValueError, None, "memory of its own, got a tensor that overlaps")


def test_c_may_be_out_but_not_a_part_of_it() -> None:
    arguments = bmm_fp16()
    room = torch.zeros(3, T, N, dtype=BF16)
    bad = {**arguments, "out": room[:2], "c": room[1:]}
    expect("bmm_fp16", bad, ValueError, "out", "overlaps c")
    gemm.bmm_fp16(**{**arguments, "out": room[:2], "c": room[:2]})


def test_columns_of_one_buffer_are_apart() -> None:
    arguments = bmm_fp16()
    room = torch.zeros(2, T, K + N, dtype=BF16)
    want = gemm.bmm_fp16(**arguments).clone()
    room[..., :K] = arguments["a"]
    gemm.bmm_fp16(**{**arguments, "a": room[..., :K], "out": room[..., K:]})
    assert torch.equal(room[..., K:], want)
    bad = {**arguments, "a": room[..., :K], "out": room[..., K - 1 : -1]}
    expect("bmm_fp16", bad, ValueError, "out", "overlaps a")

"""TileLang programs without a GPU: their numbers, tile operations as loops on the CPU, and what
TileLang lowers them to for Hopper. Arguments are checked where TileLang is missing, too."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gemm_cases import SENTINEL, Maker
from indexer_cases import PagedCase, paged_case
from tilelang_cases import (
    COUNTS,
    assert_masked,
    assert_ragged,
    masked_case,
    operands,
    ragged_case,
)
from tilelang_plain import Plain

from mate_plugin.kernels.tilelang import cache, grouped, logits
from mate_plugin.kernels.tilelang.grouped_program import LAYOUTS, Tile, grouped_gemm
from mate_plugin.kernels.tilelang.logits_program import Split, paged_mqa_logits

BF16 = torch.bfloat16
missing = cache.obstacle("cuda")
needs_tilelang = pytest.mark.skipif(bool(missing), reason=missing)
TILES = (grouped.WIDE, grouped.NARROW)


def lowered(build: Callable[..., Any], *shape: Any) -> str:
    """CUDA source for sm_90a; nothing is compiled."""
    tilelang = cache.package()
    target = tilelang.tvm.target.Target(cache.target("cuda"))
    with target:
        text: str = tilelang.lower(build(*shape, cache.FP8["cuda"]), target=target).kernel_source
    return text


def assert_fast(source: str, columns: int, stages: int) -> None:
    """FP8 products of 64 rows on the tensor cores, operands by bulk copies some steps ahead."""
    operands = ", ".join(["tl::DataType::kFloat8_e4m3"] * 2)
    assert f"tl::wgmma_ss<{operands}, tl::DataType::kFloat32, 64, {columns}, 32," in source
    assert "tl::tma_load(" in source
    barriers = re.search(r"uint64_t mbarrier_mem\[(\d+)\]", source)
    assert barriers is not None
    assert int(barriers[1]) == 2 * stages


def assert_idle_blocks_do_nothing(source: str) -> None:
    """Whether a block has rows is known before it is asked, and asked before its first copy.

    TileLang moves a condition around a pipelined loop in front of what the condition reads.
    """
    body = source[source.index("rasterization2D") :]
    before = body[: body.index("for (int step = 0;")]
    assert re.search(r"\blive = .*0 < live", before, re.DOTALL), before


@needs_tilelang
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_grouped_gemm_is_lowered_to_fp8_units_and_bulk_copies(layout: str, tile: Tile) -> None:
    source = lowered(grouped_gemm, layout, 32, 4096, 7168, 128, tile)
    assert_fast(source, tile.columns, tile.stages)
    assert source.count("tl::tma_load(") == 2
    assert "tl::tma_store(" in source
    assert_idle_blocks_do_nothing(source)


@needs_tilelang
@pytest.mark.parametrize(("next_n", "dims"), [(1, 1), (2, 2), (4, 1)])
def test_logits_are_lowered_to_fp8_units_and_bulk_copies(next_n: int, dims: int) -> None:
    shape = (next_n, 64, 128, 64 * 132, dims, True, logits.SPLIT)
    source = lowered(paged_mqa_logits, *shape)
    assert_fast(source, next_n * 64, logits.SPLIT.stages)
    # That of the keys alone: none may be under way when a block exits without steps.
    assert source.count("tl::tma_load(") == 1


def run_plain(
    folder: Path, layout: str, a: Any, b: Any, info: torch.Tensor, alignment: int, tile: Tile
) -> torch.Tensor:
    """``out`` of a (groups, rows, k), SENTINEL where nothing was written."""
    experts, n, k = b[0].shape
    groups, rows, _ = a[0].shape
    out = torch.full((groups, rows, n), SENTINEL)
    # Scales with rows contiguous, padded as DeepGEMM pads them.
    scale = torch.full((groups, a[1].shape[2], rows + 3), float("nan"))[..., :rows].transpose(1, 2)
    scale.copy_(a[1])
    wide = {"a": a[0].float(), "b": b[0].float(), "sb": b[1], "info": info, "out": out}
    strides = dict(zip(("sa_group", "sa_row", "sa_k"), scale.stride(), strict=True))
    plain = Plain(folder, grouped_gemm, layout, experts, n, k, alignment, tile)
    plain(sa=scale, rows=rows, **wide, **strides)
    return out


@needs_tilelang
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize(("layout", "alignment"), [("per_token", 128), ("psum_expert", 256)])
def test_ragged_rows_meet_their_experts(
    tmp_path: Path, layout: str, alignment: int, counts: list[int]
) -> None:
    a, b, info, ids = ragged_case(layout, alignment, counts, 136, 208)
    grouped_a = a[0].unsqueeze(0), a[1].unsqueeze(0)
    out = run_plain(tmp_path, layout, grouped_a, b, info, alignment, Tile(64, 64, 1, 1))[0]
    assert_ragged(out, a, b, ids)


@needs_tilelang
def test_masked_rows_meet_their_experts(tmp_path: Path) -> None:
    a, b, counts, unused = masked_case([0, 70, 64, 100], 100, 136, 208)
    out = run_plain(tmp_path, "masked", a, b, counts, 128, Tile(64, 64, 1, 1))
    assert_masked(out, a, b, counts, unused)


@needs_tilelang
@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize(
    ("next_n", "lens"),
    [(1, [1, 64, 0, 300]), (2, [5, 129, 1]), (2, [[5, 3], [0, 130], [64, 65]])],
    ids=str,
)
def test_logits_of_visible_tokens_are_those_of_the_reference(
    tmp_path: Path, next_n: int, lens: Any, clean: bool
) -> None:
    case = paged_case(3, lens, next_n, heads=8, depth=32, spare_columns=1)
    batch, columns = len(lens), next_n * 8
    codes, scales = logits.parts(case.cache)
    stride = case.cache.stride(0)
    # Codes as float32 where the blocks are as far apart as the program takes them to be.
    room = torch.zeros(len(codes), stride)
    room[:, : 64 * 32] = codes.float().flatten(1)
    far = torch.zeros(len(codes), stride // 4)
    far[:, :64] = scales
    out = torch.full((batch * next_n, case.max_context_len + 5), SENTINEL)
    dims = case.context_lens.dim()
    plain = Plain(tmp_path, paged_mqa_logits, next_n, 8, 32, stride, dims, clean, Split(128, 1, 1))
    plain(
        q=case.q.float().contiguous(),
        codes=room,
        scales=far,
        weights=case.weights.contiguous().view(batch, columns),
        lens=case.context_lens,
        table=case.block_table,
        out=out,
        batch=batch,
        num_blocks=len(codes),
        max_blocks=case.block_table.shape[1],
        table_stride=case.block_table.stride(0),
        width=case.max_context_len,
        out_stride=out.stride(0),
    )
    assert torch.equal(out[:, case.max_context_len :], torch.full((batch * next_n, 5), SENTINEL))
    got = out[:, : case.max_context_len]
    if not clean:
        got = got.masked_fill(~case.visible(), float("-inf"))
    case.run = lambda **_: got  # type: ignore[method-assign]
    PagedCase.check(case)


@pytest.fixture
def without_tilelang(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "tilelang", None)
    cache.package.cache_clear()
    yield
    cache.package.cache_clear()


@pytest.mark.usefixtures("without_tilelang")
def test_a_missing_package_is_the_reason() -> None:
    assert cache.obstacle("cuda").startswith("tilelang cannot be imported (ModuleNotFoundError")
    with pytest.raises(NotImplementedError, match="grouped_gemm: tilelang cannot be imported"):
        cache.compiled(grouped_gemm, "musa", "masked", 1, 128, 128, 128, grouped.WIDE)


@needs_tilelang
def test_the_build_for_cuda_serves_no_musa_device() -> None:
    assert "is not Moore Threads' build for MUSA" in cache.obstacle("musa")


def ragged(n: int = 128, k: int = 128, **options: Any) -> None:
    a, b = operands(Maker(0), (128,), 2, n, k)
    out = torch.zeros(128, n, dtype=BF16)
    grouped.ragged_m_gemm(a, b, torch.zeros(128, dtype=torch.int32), out, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gemm_mode": "per_expert"}, "gemm_mode: expected one of 'per_token', 'psum_expert'"),
        ({"alignment_m": 64}, "alignment_m: expected at least 128, got 64"),
        ({"alignment_m": 192}, "alignment_m: expected a multiple of 128, got 192"),
        ({"gemm_mode": "psum_expert"}, r"ragged_tokens_info: expected shape \(R\) = \(2,\)"),
        ({"k": 136}, r"input_b\[0\]: expected K to be a multiple of 16, got 136"),
        ({"n": 132}, r"input_b\[0\]: expected N to be a multiple of 8, got 132"),
    ],
    ids=str,
)
def test_what_no_kernel_takes_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ragged(**options)


def test_a_cpu_has_no_tilelang_kernel() -> None:
    with pytest.raises(NotImplementedError, match="ragged_m_gemm: no TileLang kernel on 'cpu'"):
        ragged()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 16}, "q: expected D of 32, 64 or 128, got 16"),
        ({"heads": 65}, "q: expected next_n . heads to be a multiple of 8"),
        ({"block": 32}, "fused_kv_cache: expected shape"),
    ],
    ids=str,
)
def test_logits_that_no_kernel_takes_are_refused(options: dict[str, Any], message: str) -> None:
    case = paged_case(0, [70], **options)
    out = torch.zeros(1, case.max_context_len)
    arguments = (case.q, case.cache, case.weights, case.context_lens, case.block_table, out)
    with pytest.raises(ValueError, match=message):
        logits.fp8_paged_mqa_logits(*arguments)

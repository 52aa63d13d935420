"""The TileLang program without a GPU: its numbers, tile operations as loops on the CPU, and what
TileLang lowers it to for Hopper; and which calls it takes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gemm_cases import SENTINEL, Maker
from tilelang_cases import (
    COUNTS,
    assert_masked,
    assert_ragged,
    masked_case,
    masked_form,
    operands,
    ragged_case,
    ragged_form,
)
from tilelang_plain import Plain

from mate_plugin.kernels.tilelang import cache, grouped
from mate_plugin.kernels.tilelang.grouped_program import LAYOUTS, Tile, grouped_gemm

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
def test_numbers_of_no_expert_are_nobodys_rows(tmp_path: Path) -> None:
    a, b, info, ids = ragged_case("per_token", 128, [100, 128], 136, 208)
    for number, rows in ((2, slice(0, 100)), (1 << 30, slice(128, 192)), (-5, slice(192, 256))):
        info[rows], ids[rows] = number, -1
    grouped_a = a[0].unsqueeze(0), a[1].unsqueeze(0)
    out = run_plain(tmp_path, "per_token", grouped_a, b, info, 128, Tile(64, 64, 1, 1))[0]
    assert_ragged(out, a, b, ids)


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


def ragged(n: int = 128, k: int = 128, rows: int = 128, **options: Any) -> Any:
    a, b = operands(Maker(0), (rows,), 2, n, k)
    out = torch.zeros(rows, n, dtype=BF16)
    arguments = {"info": torch.zeros(rows, dtype=torch.int32), "mode": 0, "alignment": 128}
    return ragged_form(a, b, **arguments | {"out": out} | options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mode": 2}, "the rows are packed"),
        ({"alignment": 1}, "alignment_m is 1, expected a multiple of 128"),
        ({"num_mp": 3}, "num_mp has no effect on it"),
        ({"k": 136}, "K = 136 is no multiple of 16"),
        ({"n": 132}, "N = 132 is no multiple of 8"),
        ({"out": torch.zeros(128, 128)}, "the result is torch.float32"),
        ({"out": torch.zeros(128, 256, dtype=BF16)[:, :128]}, "out is not contiguous"),
        ({"out": torch.zeros(128 * 129, dtype=BF16)[1 : 128 * 128 + 1].view(128, 128)}, "out does"),
    ],
    ids=str,
)
def test_what_the_program_does_not_take_is_refused(options: dict[str, Any], reason: str) -> None:
    refused = ragged(**options)
    assert isinstance(refused, str)
    assert refused.startswith(reason)


def test_tiles_follow_the_rows_of_an_expert() -> None:
    assert ragged(rows=0) is None
    assert ragged(rows=256).shape == ("per_token", 2, 128, 128, 128, grouped.NARROW)
    assert ragged(rows=640, alignment=256).shape == ("per_token", 2, 128, 128, 256, grouped.WIDE)
    a, b, counts, _ = masked_case([3, 90], 300, 128, 128)
    out = torch.zeros(2, 300, 128, dtype=BF16)
    assert masked_form(a, b, counts, out).shape[-1] == grouped.WIDE
    assert masked_form(a, b, counts, out, 20).shape[-1] == grouped.NARROW

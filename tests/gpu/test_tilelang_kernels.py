"""TileLang's kernels on a GPU, where TileLang is installed and compiles for it."""

from __future__ import annotations

import ast
import subprocess
import sys
from os import environ
from pathlib import Path

import gpu_contract
import pytest
import torch
from gemm_cases import SENTINEL
from tilelang_cases import (
    COUNTS,
    E4M3_NAN,
    assert_masked,
    assert_ragged,
    masked_case,
    masked_form,
    ragged_case,
    ragged_form,
)

from mate_plugin.kernels import library
from mate_plugin.kernels.tilelang import cache, grouped, route
from mate_plugin.kernels.tilelang.grouped_program import LAYOUTS, Tile

gpu_contract.require_gpu()
if reason := cache.why_not(gpu_contract.DEVICE, 0):
    pytest.skip(reason, allow_module_level=True)

TILES = (grouped.WIDE, grouped.NARROW)
N, K = 392, 1104  # no multiple of 128
PUBLIC = Path(__file__).with_name("tilelang_calls.py")
CASES = [
    node.name
    for node in ast.parse(PUBLIC.read_text()).body
    if isinstance(node, ast.FunctionDef) and not node.args.args
]


def empty(*shape: int) -> torch.Tensor:
    return torch.full(shape, SENTINEL, dtype=torch.bfloat16)


def rows_contiguous(scale: torch.Tensor) -> torch.Tensor:
    """The scales as DeepGEMM wants them: rows contiguous, and room after them."""
    *outer, rows, blocks = scale.shape
    room = torch.full((*outer, blocks, rows + 3), float("nan"))
    turned = room[..., :rows].transpose(-1, -2)
    turned.copy_(scale)
    return turned


def run(form: grouped.Launch | str | None, tile: Tile) -> None:
    assert isinstance(form, grouped.Launch), form
    out = form.tensors[-1]
    launch = form._replace(shape=(*form.shape[:-1], tile))
    assert not route.run("ragged_m_gemm", launch, out.device, library.stream(out))


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize(("layout", "alignment"), [("per_token", 128), ("psum_expert", 256)])
def test_ragged_rows_meet_their_experts(
    layout: str, alignment: int, counts: list[int], turned: bool, tile: Tile
) -> None:
    a, b, info, ids = ragged_case(layout, alignment, counts, N, K)
    out = empty(len(ids), N)
    scale = rows_contiguous(a[1]) if turned else a[1]
    run(ragged_form((a[0], scale), b, info, out, LAYOUTS.index(layout), alignment), tile)
    assert_ragged(out, a, b, ids)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_masked_rows_meet_their_experts(turned: bool, tile: Tile) -> None:
    a, b, counts, unused = masked_case([0, 170, 128, 200, 1], 200, N, K)
    out = empty(*unused.shape, N)
    scale = rows_contiguous(a[1]) if turned else a[1]
    run(masked_form((a[0], scale), b, counts, out), tile)
    assert_masked(out, a, b, counts, unused)


def test_a_nan_stays_in_its_row() -> None:
    a, b, info, ids = ragged_case("per_token", 128, [130, 128], N, K)
    a[0].view(torch.uint8)[5, 700] = E4M3_NAN
    out = empty(len(ids), N)
    run(ragged_form(a, b, info, out, 0, 128), grouped.WIDE)
    assert bool(out[5].isnan().all())
    assert_ragged(out, a, b, ids)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_numbers_of_no_expert_are_nobodys_rows(tile: Tile) -> None:
    a, b, info, ids = ragged_case("per_token", 128, [100, 128], N, K)
    for number, rows in ((2, slice(0, 100)), (1 << 30, slice(128, 256))):
        info[rows], ids[rows] = number, -1
    out = empty(len(ids), N)
    run(ragged_form(a, b, info, out, 0, 128), tile)
    torch.cuda.synchronize()
    assert bool((out == SENTINEL).all())


@pytest.mark.parametrize("case", CASES)
def test_calls_of_the_public_functions(case: str) -> None:
    """In a process of its own, where ``MATE_PLUGIN_IMPL`` asks for TileLang."""
    done = subprocess.run(
        [sys.executable, str(PUBLIC), case],
        env=environ | {"MATE_PLUGIN_IMPL": "tilelang"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

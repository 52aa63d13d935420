"""Grouped products for the TileLang tests: rows of no expert hold NaN and are not to be written."""

from __future__ import annotations

from typing import Any

import torch
from gemm_cases import E4M3, SENTINEL, Maker, assert_close

from mate_plugin.kernels import library
from mate_plugin.kernels.reference import gemm as oracle
from mate_plugin.kernels.tilelang import grouped

E4M3_NAN = 0x7F
COUNTS = [[100, 0, 128, 1, 90], [0, 0, 0, 300], [256, 130, 0], [0, 0, 0, 0], [200]]


def psum_layout(counts: list[int], alignment: int) -> tuple[torch.Tensor, int]:
    """Ends of the experts' rows, and how many rows there are up to an aligned one."""
    ends, end = [], 0
    for count in counts:
        end = -(-end // alignment) * alignment + count
        ends.append(end)
    return torch.tensor(ends, dtype=torch.int32), -(-end // alignment) * alignment


def operands(make: Maker, rows: tuple[int, ...], experts: int, n: int, k: int) -> Any:
    a = make.normal(*rows, k, dtype=E4M3), make.scale(*rows, -(-k // 128))
    b = make.normal(experts, n, k, dtype=E4M3), make.scale(experts, -(-n // 128), -(-k // 128))
    return a, b


def ragged_case(layout: str, alignment: int, counts: list[int], n: int, k: int) -> Any:
    """A, B, what assigns rows to experts, and the expert of each row or -1."""
    ends, rows = psum_layout(counts, alignment)
    rows = max(rows, 1) + 40  # the last rows fill no tile and belong to nobody
    ids = oracle.expert_of_row(ends, rows, "psum_expert", alignment)
    a, b = operands(Maker(rows), (rows,), len(counts), n, k)
    a[0].view(torch.uint8)[ids < 0] = E4M3_NAN
    return a, b, ids.int() if layout == "per_token" else ends, ids


def masked_case(counts: list[int], rows: int, n: int, k: int) -> Any:
    """A, B, the counts, and which rows are past them."""
    a, b = operands(Maker(rows), (len(counts), rows), len(counts), n, k)
    info = torch.tensor(counts, dtype=torch.int32)
    unused = torch.arange(rows) >= info[:, None]
    a[0].view(torch.uint8)[unused] = E4M3_NAN
    return a, b, info, unused


def ragged_form(
    a: Any,
    b: Any,
    info: torch.Tensor,
    out: torch.Tensor,
    mode: int,
    alignment: int,
    num_mp: int = 0,
) -> grouped.Launch | str | None:
    """What the program is called with for the arguments of the compiled op."""
    types = (library.tag(a[0].dtype), library.tag(b[0].dtype))
    options = (mode, 128, 128, alignment, library.tag(out.dtype), num_mp, 0)
    return grouped.ragged_m_gemm(*a, *b, info, out, *types, *options)


def masked_form(
    a: Any, b: Any, info: torch.Tensor, out: torch.Tensor, expect_tokens: int = 0
) -> grouped.Launch | str | None:
    """The same of the masked form."""
    types = (library.tag(a[0].dtype), library.tag(b[0].dtype))
    options = (128, 128, library.tag(out.dtype), expect_tokens, 0, 0)
    return grouped.masked_gemm(*a, *b, info, out, None, *types, *options)


def assert_ragged(out: torch.Tensor, a: Any, b: Any, ids: torch.Tensor) -> None:
    """The products of rows of an expert; the others are as they were."""
    used = ids >= 0
    assert bool((out[~used] == SENTINEL).all())
    if not used.any():
        return

    def product(x: Any, y: Any) -> torch.Tensor:
        return oracle.ragged_m(x, y, ids[used])

    assert_close(out[used], product, (a[0][used], a[1][used]), b, b[0].shape[-1])


def assert_masked(
    out: torch.Tensor, a: Any, b: Any, counts: torch.Tensor, unused: torch.Tensor
) -> None:
    """The products of rows below the counts; the others are as they were."""
    assert bool((out[unused] == SENTINEL).all())
    codes = a[0].clone()
    codes.view(torch.uint8)[unused] = 0
    clean = out.masked_fill(unused[..., None], 0)
    assert_close(clean, lambda x, y: oracle.masked(x, y, counts), (codes, a[1]), b, b[0].shape[-1])

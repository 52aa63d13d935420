"""Writing and reading paged caches: the indexer's keys, and the latent rows of MLA.

The indexer's cache is uint8 (num_blocks, block, D + 4): a block holds ``block`` rows of D e4m3
codes and then ``block`` float32 scales. Row ``i`` of block ``b`` is slot ``b * block + i``.
"""

from __future__ import annotations

from typing import Any

import torch

from mate_plugin.kernels import library
from mate_plugin.kernels.checks import contract, describe, index_checks_enabled, integer
from mate_plugin.kernels.mqa_checks import check_blocks, check_cache, check_depth, check_lens

_quant_and_write_k = library.define(
    "quant_and_write_k",
    "(Tensor k, Tensor(a!) kv_cache, Tensor slot_mapping, bool ue8m0, int tag, int num_threads,"
    " int stream) -> ()",
)
_gather_k = library.define(
    "gather_k",
    "(Tensor kv_cache, Tensor block_table, Tensor context_lens, Tensor(a!) out_k,"
    " Tensor(b!) out_scale, int num_threads, int stream) -> ()",
)
_write_latents = library.define(
    "write_latents",
    "(Tensor latent, Tensor rope, Tensor(a!) kv_cache, Tensor slot_mapping, int tag,"
    " int num_threads, int stream) -> ()",
)

_CHECK_WRITE = contract(
    "quant_and_write_k",
    "k: bf16|fp16|f32 [T, D] rows",
    "kv_cache: u8 [BLOCKS, BLOCK, FUSED] out",
    "slot_mapping: i32|i64 [S]",
    where={"FUSED": "D + 4"},
)
_GATHER = (
    "kv_cache: u8 [BLOCKS, BLOCK, FUSED] rows",
    "block_table: i32 [B, W] rows",
    "context_lens: i32 [B]",
)
_CHECK_GATHER = contract("gather_k", *_GATHER)
_CHECK_GATHER_OUT = contract(
    "gather_k",
    *_GATHER,
    "out_k: e4m3 [N, D] out",
    "out_scale: f32 [N] out",
    where={"N": "num_rows", "D": "FUSED - 4"},
)
# Keyed by the dtype that all have in common; None refuses any other.
_CHECK_LATENTS = {
    dtype: contract(
        "write_latents",
        f"latent: {name} [T, RANK] rows",
        f"rope: {name} [T, ROPE] rows",
        f"kv_cache: {name} [BLOCKS, BLOCK, D] out",
        "slot_mapping: i32|i64 [S]",
        where={"D": "RANK + ROPE"},
    )
    for dtype, name in (
        (torch.bfloat16, "bf16"),
        (torch.float16, "fp16"),
        (None, "bf16|fp16"),
    )
}


def quant_and_write_k(
    k: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    ue8m0: bool = True,
    num_mp: int | None = None,
) -> None:
    """Round each row of keys to e4m3 with one scale and write both to its slot of the cache.

    ``scale = max(amax, 1e-4) / 448`` and ``code = round(k / scale)``: true float32 divisions,
    rounding to nearest, ties to even, saturating. A NaN makes the codes and the scale of its row
    NaN, an infinity its scale infinite and its own code NaN. Other rows are not affected.

    Args:
        k: bfloat16, float16 or float32 (T, D), rows of any stride, D a multiple of 16.
        kv_cache: uint8 (num_blocks, block, D + 4) or (num_blocks, block, 1, D + 4), written. Blocks
            may be apart, ``stride(0)`` is a multiple of 4; ``block`` is a power of two of at least
            16.
        slot_mapping: int64 or int32 (S,), any stride, S <= T: the slot of each row, each at most
            once. Rows of negative slots and those from S on are not written, nor are slots past
            the cache without index checks.
        ue8m0: round scales up to powers of two.
        num_mp: at most so many threads; None takes all.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong shape, layout or value; with index checks (``MATE_PLUGIN_CHECK=1``) also
            slots past the cache or named twice. Nothing is written.
        NotImplementedError: there are no kernels for the device.
    """
    integer("num_mp", num_mp, 1)
    if not isinstance(ue8m0, bool):
        raise TypeError(f"ue8m0: expected a bool, got {describe(ue8m0)}")
    cache = _without_head(kv_cache)
    _CHECK_WRITE(k, cache, slot_mapping)
    check_depth(k, "k")
    check_cache("kv_cache", cache)
    _check_slots(slot_mapping, k.shape[0], cache)
    _quant_and_write_k(
        k,
        cache,
        slot_mapping,
        ue8m0,
        library.tag(k.dtype),
        library.threads(num_mp, k),
        library.stream(k),
    )


def gather_k(
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    out_k: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
    num_mp: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cached keys of each request, one request after the other, and their scales.

    Args:
        kv_cache: as for :func:`quant_and_write_k`.
        block_table: int32 (B, W), any row stride: position i of request r is row ``i % block`` of
            block ``block_table[r, i // block]``.
        context_lens: int32 (B,), any stride: positions of each request. Without index checks,
            lengths are cut to [0, W * block] and rows of blocks that do not exist become zeros
            with scales of zero.
        out_k: float8_e4m3fn (N, D), rows of any stride. Requests that do not fit into N rows are
            cut off; rows past the last request are not written.
        out_scale: float32 (N,) beside it. Where neither is given, N is the sum of the lengths, for
            which the host reads them: torch.compile wants them given.
        num_mp: at most so many threads; None takes all.

    Returns:
        ``out_k, out_scale``.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong shape, layout or value; with index checks (``MATE_PLUGIN_CHECK=1``) also
            lengths past the table or the outputs, and blocks that do not exist. Nothing is written.
        NotImplementedError: there are no kernels for the device.
    """
    integer("num_mp", num_mp, 1)
    cache = _without_head(kv_cache)
    _CHECK_GATHER(cache, block_table, context_lens)
    num_blocks, block, fused = cache.shape
    check_cache("kv_cache", cache)
    if fused <= 4 or fused % 16 != 4:
        raise ValueError(
            "kv_cache: expected shape (BLOCKS, BLOCK, D + 4), D a multiple of 16,"
            f" got {tuple(cache.shape)}"
        )
    given = out_k if out_k is not None else out_scale
    if given is None:
        most = block_table.shape[1] * block
        num_rows = int(context_lens.clamp(0, most).sum()) if len(context_lens) else 0
    else:
        num_rows = given.shape[0] if isinstance(given, torch.Tensor) and given.dim() else 0
    if out_k is None:
        shape = (num_rows, fused - 4)
        out_k = torch.empty(shape, dtype=torch.float8_e4m3fn, device=cache.device)
    if out_scale is None:
        out_scale = torch.empty(num_rows, dtype=torch.float32, device=cache.device)
    _CHECK_GATHER_OUT(cache, block_table, context_lens, out_k, out_scale, num_rows)
    if index_checks_enabled():
        check_lens(context_lens, 2**31, block_table.shape[1], block)
        if (total := sum(max(length, 0) for length in context_lens.tolist())) > num_rows:
            raise ValueError(f"out_k: expected room for {total} rows, got {num_rows}")
        check_blocks(block_table, context_lens, num_blocks, block)
    _gather_k(
        cache,
        block_table,
        context_lens,
        out_k,
        out_scale,
        library.threads(num_mp, cache),
        library.stream(cache),
    )
    return out_k, out_scale


def write_latents(
    latent: torch.Tensor,
    rope: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    num_mp: int | None = None,
) -> None:
    """Write the latent part and the rotary part of each token's row to its slot of an MLA cache.

    Args:
        latent: bfloat16 or float16 (T, rank), rows of any stride.
        rope: (T, rope_dim) of the same dtype, rows of any stride.
        kv_cache: (num_blocks, block, rank + rope_dim) of the same dtype, written: the last
            dimension is contiguous, any block >= 1.
        slot_mapping: as for :func:`quant_and_write_k`.
        num_mp: at most so many threads; None takes all.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong shape, layout or value; with index checks (``MATE_PLUGIN_CHECK=1``) also
            slots past the cache or named twice. Nothing is written.
        NotImplementedError: there are no kernels for the device.
    """
    integer("num_mp", num_mp, 1)
    dtype = latent.dtype if isinstance(latent, torch.Tensor) else None
    check = _CHECK_LATENTS.get(dtype, _CHECK_LATENTS[None])
    check(latent, rope, kv_cache, slot_mapping)
    _check_slots(slot_mapping, latent.shape[0], kv_cache)
    _write_latents(
        latent,
        rope,
        kv_cache,
        slot_mapping,
        library.tag(latent.dtype),
        library.threads(num_mp, latent),
        library.stream(latent),
    )


def _without_head(kv_cache: Any) -> Any:
    """A cache (num_blocks, block, 1, D + 4) without its head; anything else as it is."""
    if isinstance(kv_cache, torch.Tensor) and kv_cache.dim() == 4 and kv_cache.shape[2] == 1:
        return kv_cache[:, :, 0]
    return kv_cache


def _check_slots(slot_mapping: torch.Tensor, rows: int, cache: torch.Tensor) -> None:
    if slot_mapping.shape[0] > rows:
        raise ValueError(
            f"slot_mapping: expected at most {rows} slots, one a row, got {slot_mapping.shape[0]}"
        )
    if not index_checks_enabled():
        return
    slots, seen = cache.shape[0] * cache.shape[1], set()
    for row, slot in enumerate(slot_mapping.tolist()):
        if slot >= slots or slot in seen:
            fault = " again" if slot in seen else ""
            raise ValueError(
                f"slot_mapping: expected slots below {slots}, each at most once,"
                f" got {slot}{fault} at row {row}"
            )
        if slot >= 0:
            seen.add(slot)

"""The paged caches' functions in plain torch: the documented float32 arithmetic to the bit."""

from __future__ import annotations

import torch

from mate_plugin.kernels.reference.indexer import split_cache
from mate_plugin.kernels.reference.pieces import per_token_group_quant_fp8


def quantise_k(k: torch.Tensor, ue8m0: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (T, D) and scales (T,) of keys."""
    codes, scales = per_token_group_quant_fp8(k, k.shape[1], ue8m0=ue8m0, least=1e-4)
    return codes, scales[:, 0]


def quant_and_write_k(
    k: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor, ue8m0: bool = True
) -> torch.Tensor:
    """A copy of the contiguous cache (num_blocks, block, D + 4) with the keys written to it."""
    num_blocks, block, fused = kv_cache.shape
    depth = fused - 4
    flat = kv_cache.reshape(num_blocks, block * fused).clone()
    codes, scales = quantise_k(k, ue8m0)
    for row, slot in enumerate(slot_mapping.tolist()):
        if 0 <= slot < num_blocks * block:
            b, i = divmod(slot, block)
            flat[b, i * depth : (i + 1) * depth] = codes[row].view(torch.uint8)
            at = block * depth + 4 * i
            flat[b, at : at + 4] = scales[row : row + 1].view(torch.uint8)
    return flat.view_as(kv_cache)


def gather_k(
    kv_cache: torch.Tensor, block_table: torch.Tensor, context_lens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes (N, D) of the codes and scales (N,) of every request's keys; zeros without a block."""
    codes, scales = split_cache(kv_cache.unsqueeze(2))
    block = kv_cache.shape[1]
    all_codes, all_scales = [codes.new_empty(0, codes.shape[2]).view(torch.uint8)], [scales[:0, 0]]
    for request, length in enumerate(context_lens.tolist()):
        positions = torch.arange(min(max(length, 0), block_table.shape[1] * block))
        blocks = block_table[request].long()[positions // block]
        exists = (blocks >= 0) & (blocks < kv_cache.shape[0])
        where = blocks.where(exists, 0), positions % block
        all_codes.append(codes.view(torch.uint8)[where] * exists[:, None])
        all_scales.append(scales[where].where(exists, 0.0))
    return torch.cat(all_codes), torch.cat(all_scales)


def write_latents(
    latent: torch.Tensor, rope: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
) -> torch.Tensor:
    """A copy of the cache with the rows written to it."""
    written = kv_cache.clone()
    for row, slot in enumerate(slot_mapping.tolist()):
        if 0 <= slot < kv_cache.shape[0] * kv_cache.shape[1]:
            written[divmod(slot, kv_cache.shape[1])] = torch.cat([latent[row], rope[row]])
    return written

"""What the weights of a MoE layer must look like, checked once when it is built."""

from __future__ import annotations

import torch

from mate_plugin.kernels import packing
from mate_plugin.layers.plan import WeightBits, check_block

DTYPES_16BIT = (torch.bfloat16, torch.float16)


def check_weights(
    w13: torch.Tensor,
    w13_scale: torch.Tensor | None,
    w2: torch.Tensor,
    w2_scale: torch.Tensor | None,
    block: tuple[int, int],
) -> None:
    """Raise unless the tensors fit together (shapes and dtypes as in :class:`.experts.Experts`).

    Raises:
        ValueError: a shape, or one scale without the other.
        TypeError: weights without scales that are not of one 16-bit dtype, or the reverse; scales
            that are not float32.
    """
    check_block(block)
    n, k = block
    if w2.dim() != 3:
        raise ValueError(f"w2: expected [E, H, I], got {list(w2.shape)}")
    if (w13_scale is None) != (w2_scale is None):
        missing, present = ("w13", "w2") if w13_scale is None else ("w2", "w13")
        raise ValueError(
            f"{missing}_scale: expected a tensor beside {present}_scale, or None for both, got None"
        )
    _check_dtypes(w13, w2, scaled=w13_scale is not None)
    experts, hidden, inner = w2.shape
    expected = {
        "w13": (w13, (experts, 2 * inner, hidden)),
        "w13_scale": (w13_scale, (experts, 2 * _blocks(inner, n), _blocks(hidden, k))),
        "w2_scale": (w2_scale, (experts, _blocks(hidden, n), _blocks(inner, k))),
    }
    for name, scale in (("w13_scale", w13_scale), ("w2_scale", w2_scale)):
        if scale is not None:
            _check_scale_layout(name, scale)
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            in_blocks = "" if w13_scale is None else f" in {n}x{k} blocks"
            raise ValueError(
                f"{name}: expected {list(shape)} beside w2 {list(w2.shape)}{in_blocks}, "
                f"got {list(tensor.shape)}"
            )


def packs(w13: torch.Tensor, w2: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether kernels in use are faster with both weights packed, beside tokens of ``dtype``."""
    if dtype != torch.bfloat16 or packing.why_not(w13) or packing.why_not(w2):
        return False
    # The up rows start a panel of their own.
    return w2.shape[2] % packing.ROWS == 0


def pack_in_place(w13: torch.Tensor, w2: torch.Tensor) -> None:
    """Pack weights in place for which :func:`packs` holds."""
    for weight in (w13, w2):
        packing.rearrange(weight, weight)


def weight_bits(w13_scale: torch.Tensor | None) -> WeightBits:
    """8 for weights that come with scales, 16 for those without."""
    return 16 if w13_scale is None else 8


def shape_name(w2: torch.Tensor) -> str:
    """Name under which a layer's calls are counted: experts x hidden x intermediate size."""
    return f"{w2.shape[0]}x{w2.shape[1]}x{w2.shape[2]}"


def _check_dtypes(w13: torch.Tensor, w2: torch.Tensor, scaled: bool) -> None:
    if scaled:
        for name, weight in (("w13", w13), ("w2", w2)):
            if weight.dtype in DTYPES_16BIT:
                raise TypeError(f"{name}: expected FP8 beside {name}_scale, got {weight.dtype}")
        return
    if w13.dtype not in DTYPES_16BIT:
        raise TypeError(
            "w13: expected torch.bfloat16 or torch.float16 where w13_scale is None,"
            f" got {w13.dtype}"
        )
    if w2.dtype != w13.dtype:
        raise TypeError(f"w2: expected {w13.dtype}, the dtype of w13, got {w2.dtype}")


def _check_scale_layout(name: str, scale: torch.Tensor) -> None:
    # Engines rewrite scales for other kernels: packed powers of two (UE8M0), padded, transposed.
    if scale.dtype != torch.float32:
        raise TypeError(f"{name}: expected torch.float32, got {scale.dtype}")
    if not scale.is_contiguous():
        raise ValueError(f"{name}: expected contiguous rows, got strides {list(scale.stride())}")


def _blocks(size: int, block: int) -> int:
    return -(-size // block)

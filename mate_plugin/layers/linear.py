"""The block-FP8 linear layer without an engine: one torch op, 16-bit or FP8 activations."""

from __future__ import annotations

import torch

from mate_plugin import report
from mate_plugin.kernels import gemm, packing, quant
from mate_plugin.layers.plan import check_block, implementation, phrase, resolve_activation


class BlockLinear:
    """``x @ (weight * scale).T`` with one scale per block of the weight.

    Args:
        weight: ``[N, K]`` e4m3 or e5m2.
        scale: float32 ``[ceil(N / n), ceil(K / k)]`` for blocks of ``n x k``.
        block: ``(n, k)``.
        activation: "bf16" keeps the activations, "fp8" rounds them per token and ``k`` columns
            first; "auto" does the former on a CPU and the latter on a GPU.
        pack: for activations in bfloat16, rearrange the memory of ``weight`` where the kernels are
            faster so (:mod:`mate_plugin.kernels.packing`); it cannot be read as rows afterwards.

    Raises:
        TypeError: activations in float16 beside packed weights.
        ValueError: an argument is wrong; the message names it.
        NotImplementedError: there are no kernels for the device.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor,
        block: tuple[int, int] = (128, 128),
        activation: str = "auto",
        pack: bool = False,
    ) -> None:
        check_scale(weight, scale, block)
        self.activation = resolve_activation(activation, weight.device)
        if pack and packing.why_not(weight) is None:
            weight = packing.rearrange(weight, weight)
        self.weight, self.scale = weight, scale
        note_layer(self.weight, self.activation)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x[..., K]`` (bf16 or fp16) to ``[..., N]`` of the same dtype."""
        return block_linear(x, self.weight, self.scale, bias, self.activation)


def check_scale(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> None:
    """Raise ValueError unless ``scale`` has one entry per ``block`` of ``weight[N, K]``."""
    check_block(block)
    if weight.dim() != 2:
        raise ValueError(f"weight: expected [N, K], got {list(weight.shape)}")
    expected = [-(-size // step) for size, step in zip(weight.shape, block, strict=True)]
    if list(scale.shape) != expected:
        raise ValueError(
            f"scale: expected {expected} for a weight {list(weight.shape)} in "
            f"{block[0]}x{block[1]} blocks, got {list(scale.shape)}"
        )


def spread_blocks(
    scale: torch.Tensor, n: int, k: int, block: tuple[int, int] = (128, 128)
) -> torch.Tensor:
    """``scale[ceil(N / n), ceil(K / k)]`` repeated for each entry of a weight ``[N, K]``."""
    rows = scale.repeat_interleave(block[0], 0)[:n]
    return rows.repeat_interleave(block[1], 1)[:, :k]


def dequantise_blocks(
    weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] = (128, 128)
) -> torch.Tensor:
    """Float32 values of ``weight[N, K]`` with one scale per block."""
    return weight.float() * spread_blocks(scale, weight.shape[0], weight.shape[1], block)


def note_layer(weight: torch.Tensor, activation: str) -> None:
    """Count a layer as built; NotImplementedError where its device has no kernels."""
    impl, reason = implementation("batched_gemm", weight.device)
    form = phrase(activation)
    if weight.dim() > 2:
        form = f"{form}, packed weights"
    report.layer_built("linear", shape_name(weight), f"{form}, {impl}: {reason}")


def shape_name(weight: torch.Tensor) -> str:
    """Name under which a layer's calls are counted: N x K."""
    n, k = packing.as_rows(weight).shape
    return f"{n}x{k}"


def block_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "bf16",
) -> torch.Tensor:
    """:class:`BlockLinear` for callers that keep weight, packed or not, and scale themselves."""
    if weight.dim() > 2 and x.dtype == torch.float16:
        raise TypeError("x: expected torch.bfloat16 beside packed weights, got torch.float16")
    run = torch.ops.mate_plugin.block_linear if torch.compiler.is_compiling() else _linear
    out = run(x.reshape(-1, x.shape[-1]), weight, scale, activation)
    if bias is not None:
        out = out + bias
    return out.view(*x.shape[:-1], out.shape[-1])


def _linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, activation: str
) -> torch.Tensor:
    report.layer_called("linear", shape_name(weight))
    if activation == "fp8":
        rows, row_scale = quant.per_token_group_quant_fp8(x, 128)
        return gemm.gemm_fp8_nt_groupwise(rows, weight, row_scale, scale, out_dtype=x.dtype)
    return gemm.gemm_w8a16_nt_groupwise(x, weight, scale, out_dtype=x.dtype)


_library = torch.library.Library("mate_plugin", "FRAGMENT")
_library.define("block_linear(Tensor x, Tensor weight, Tensor scale, str activation) -> Tensor")
for _device in ("CPU", "CUDA"):
    _library.impl("block_linear", _linear, _device)
torch.library.register_fake(
    "mate_plugin::block_linear",
    lambda x, weight, *_: x.new_empty(x.shape[0], packing.as_rows(weight).shape[0]),
    lib=_library,
)

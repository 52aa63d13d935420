"""What a layer decides once, when it is built: numerics, layout of the rows, implementation."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal

import torch

from mate_plugin.kernels import select

Activation = Literal["bf16", "fp8"]
WeightBits = Literal[8, 16]
MODES = ("per_token", "psum_expert", "per_expert", "masked")
ALIGNMENTS = (1, 128, 256)
ACTIVATIONS = ("bf16", "fp8")
# The operands of a GEMM in words.
FORMS: dict[tuple[WeightBits, Activation], str] = {
    (8, "bf16"): "8-bit x 16-bit",
    (8, "fp8"): "8-bit x 8-bit",
    (16, "bf16"): "16-bit x 16-bit",
}
# (N, K) of one weight scale that the grouped GEMMs take.
BLOCKS = ((128, 128),)


@dataclass(frozen=True)
class ExpertsPlan:
    """How a MoE layer computes.

    activation: "bf16" keeps the 16-bit activations, "fp8" rounds them per token and 128 columns
        before each GEMM, as GPUs do.
    gemm_mode: layout in which rows reach the grouped GEMM.
    alignment_m: each expert's rows start at a multiple of this.
    block: (N, K) of one weight scale; no meaning where weights are of 16 bits.
    limit: clamp of SwiGLU (gate at most ``limit``, up within ``+-limit``), or None.
    impl: name of the kernel implementation; reason: why that one.
    weight_bits: 8 for FP8 weights with scales, 16 for bfloat16 or float16 weights without.
    packed: the weights were rearranged for the kernels (:mod:`mate_plugin.kernels.packing`).
    key: all of it as text, which a compiled graph can carry; :func:`from_key` reads it.
    """

    activation: Activation
    gemm_mode: str
    alignment_m: int
    block: tuple[int, int]
    limit: float | None
    impl: str
    reason: str
    weight_bits: WeightBits = 8
    packed: bool = False
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        limit = "" if self.limit is None else repr(self.limit)
        block = f"{self.block[0]}x{self.block[1]}"
        numerics = (self.form, self.gemm_mode, str(self.alignment_m), block, limit)
        storage = "packed" if self.packed else ""
        object.__setattr__(self, "key", "|".join((*numerics, storage, self.impl, self.reason)))

    @property
    def form(self) -> str:
        """The operands of the GEMMs in words, weights first."""
        return phrase(self.activation, self.weight_bits)

    @property
    def fused(self) -> bool:
        """Whether one kernel runs the whole layer: it packs the rows of each expert, on CPUs."""
        return self.gemm_mode == "per_expert" and self.impl not in select.GPU_IMPLS

    def describe(self) -> str:
        """One short phrase for people."""
        layout = self.gemm_mode if self.alignment_m == 1 else f"{self.gemm_mode}/{self.alignment_m}"
        form = f"{self.form}, packed weights" if self.packed else self.form
        return f"{form}, {layout}, {self.impl}: {self.reason}"


@functools.cache
def from_key(key: str) -> ExpertsPlan:
    """The plan that ``key`` was made from."""
    form, mode, alignment, block, limit, storage, impl, reason = key.split("|", 7)
    weight_bits, activation = next(known for known, name in FORMS.items() if name == form)
    n, k = block.split("x")
    return ExpertsPlan(
        activation=activation,
        gemm_mode=mode,
        alignment_m=int(alignment),
        block=(int(n), int(k)),
        limit=float(limit) if limit else None,
        impl=impl,
        reason=reason,
        weight_bits=weight_bits,
        packed=bool(storage),
    )


def plan_experts(
    device: torch.device | str,
    block: tuple[int, int] = (128, 128),
    activation: str = "auto",
    gemm_mode: str = "auto",
    alignment_m: int | None = None,
    limit: float | None = None,
    weight_bits: WeightBits = 8,
    capability: tuple[int, int] | None = None,
) -> ExpertsPlan:
    """Choose how a MoE layer on ``device`` computes; ``capability`` as in :func:`.select.choose`.

    "auto" keeps 16-bit activations and packs the rows of each expert (``per_expert``, alignment 1)
    on a CPU. ``alignment_m=None`` packs rows there too, in each mode. On a GPU "auto" takes
    ``psum_expert`` (``per_token`` for the vendor's kernels on MUSA) and rounds activations to FP8
    beside FP8 weights; None aligns rows to 128.
    Weights of 16 bits leave no choice of ``activation``: there is no GEMM of 16 by 8 bits.

    Raises ValueError naming the argument, or NotImplementedError where the device has no kernels.
    """
    on_cpu = _is_cpu(device)
    chosen = resolve_activation(activation, device, weight_bits)
    if weight_bits not in (8, 16):
        raise ValueError(f"weight_bits: expected 8 or 16, got {weight_bits}")
    if weight_bits == 16 and chosen == "fp8":
        raise ValueError(
            "activation: expected auto or bf16 beside 16-bit weights, which are multiplied with"
            f" 16-bit activations only, got {activation!r}"
        )
    best = "per_expert" if on_cpu else "psum_expert"
    mode = _one_of("gemm_mode", best if gemm_mode == "auto" else gemm_mode, MODES)
    alignment = (1 if on_cpu else 128) if alignment_m is None else alignment_m
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment_m: expected one of 1, 128, 256, got {alignment_m}")
    if mode in ("per_expert", "masked"):
        # Both layouts carry counts and leave nothing to align.
        alignment = 1
    check_block(block)
    if limit is not None and not limit > 0:
        raise ValueError(f"limit: expected a positive number or None, got {limit}")
    op = "masked_gemm" if mode == "masked" else "ragged_m_gemm"
    choice = implementation(op, device, capability)
    if gemm_mode == "auto" and choice[0] == "vendor":
        # The layout that its kernels read in every release; the others would be turned into it.
        mode = "per_token"
    return ExpertsPlan(chosen, mode, alignment, tuple(block), limit, *choice, weight_bits)  # type: ignore[arg-type]


def block_of(granularity: tuple[int, int, int]) -> tuple[int, int]:
    """(N, K) of one weight scale for the setting ``scale_granularity``; ValueError where no layer
    serves it."""
    m, n, k = granularity
    if m != 1 or (n, k) not in BLOCKS:
        known = ", ".join(f"1,{a},{b}" for a, b in BLOCKS)
        raise ValueError(f"scale_granularity: the layers serve {known}, got {m},{n},{k}")
    return n, k


def phrase(activation: str, weight_bits: WeightBits = 8) -> str:
    """The operands of a GEMM in words, weights first."""
    return FORMS[weight_bits, activation]  # type: ignore[index]


def check_block(block: tuple[int, int]) -> None:
    """Raise ValueError unless the kernels take weight scales of ``block`` (N, K)."""
    if tuple(block) not in BLOCKS:
        known = ", ".join(f"{n}x{k}" for n, k in BLOCKS)
        raise ValueError(f"block: expected one of {known}, got {tuple(block)}")


def resolve_activation(
    activation: str, device: torch.device | str, weight_bits: WeightBits = 8
) -> str:
    """What a layer rounds its activations to: "auto" keeps them on a CPU, and rounds them to FP8
    beside FP8 weights on a GPU. Raises ValueError for an unknown name."""
    best = "bf16" if _is_cpu(device) or weight_bits == 16 else "fp8"
    return _one_of("activation", best if activation == "auto" else activation, ACTIVATIONS)


def implementation(
    op: str, device: torch.device | str, capability: tuple[int, int] | None = None
) -> tuple[str, str]:
    """Name of and reason for the implementation of ``op``; NotImplementedError where none is."""
    choice = select.choose(op, device, capability)
    if choice.impl is None:
        raise NotImplementedError(f"{op}: not available on {choice.device!r}: {choice.reason}")
    return choice.impl, choice.reason


def _is_cpu(device: torch.device | str) -> bool:
    # By name: torch knows "musa" only where its package is imported.
    return str(device).partition(":")[0] == "cpu"


def _one_of(name: str, value: str, names: tuple[str, ...]) -> str:
    if value not in names:
        raise ValueError(f"{name}: expected one of auto, {', '.join(names)}, got {value!r}")
    return value

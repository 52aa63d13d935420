"""Write a small random checkpoint, in block FP8 or as its dequantised twin in bfloat16."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from mate_plugin.demo.families import (
    SUCCESSOR_PULL,
    Matrix,
    Ones,
    layer_tensors,
    model_config,
    unquantised_modules,
)
from mate_plugin.demo.tokenizer import FIRST_SYLLABLE, VOCABULARY, write_tokenizer
from mate_plugin.layers.linear import dequantise_blocks, spread_blocks

BLOCK = 128
FP8_MAX = 448.0


def write_checkpoint(
    path: str | Path,
    family: str = "deepseek-v3",
    quant: Literal["fp8", "bf16"] = "fp8",
    seed: int = 0,
    size: str = "tiny",
    pow2_scales: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Write config, tokenizer, chat template and random weights into the folder ``path``.

    ``family`` is "deepseek-v3", "deepseek-v3.2" or "qwen3-moe", ``size`` "tiny" (a few MB) or
    "small" (tens of MB). ``quant="fp8"`` stores the weights of linear and expert layers as e4m3
    with one float32 scale per 128x128 block (``weight_scale_inv``); "bf16" stores what those
    weights dequantise to, and is exact with ``pow2_scales``, which rounds scales up to powers of
    two. The same ``seed`` gives the same model in both. ``overrides`` replaces entries of
    config.json, for instance sizes, ``max_position_embeddings`` or ``index_topk``.

    Returns the folder. Raises ValueError for an unknown family, size or quant.
    """
    if quant not in ("fp8", "bf16"):
        raise ValueError(f"quant: expected 'fp8' or 'bf16', found {quant!r}")
    config = model_config(family, size, overrides)
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for tensor in layer_tensors(config):
        if isinstance(tensor, Matrix):
            _add_matrix(weights, tensor, generator, quant, pow2_scales)
        elif isinstance(tensor, Ones):
            weights[tensor.name] = torch.ones(tensor.n, dtype=torch.bfloat16)
        else:
            weights[tensor.name] = torch.zeros(tensor.n)
    _add_vocabulary(weights, config, generator)
    if quant == "fp8":
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
        }
        if skipped := unquantised_modules(config):
            config["quantization_config"]["modules_to_not_convert"] = skipped

    from safetensors.torch import save_file

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, config["max_position_embeddings"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(config, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def quantise_blocks(
    weight: torch.Tensor, pow2_scales: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 ``[N, K]`` and float32 scales ``[ceil(N/128), ceil(K/128)]`` of ``weight[N, K]``."""
    n, k = weight.shape
    rows, columns = math.ceil(n / BLOCK), math.ceil(k / BLOCK)
    padded = weight.new_zeros(rows * BLOCK, columns * BLOCK, dtype=torch.float32)
    padded[:n, :k] = weight
    scale = padded.view(rows, BLOCK, columns, BLOCK).abs().amax((1, 3)).clamp(min=1e-12) / FP8_MAX
    if pow2_scales:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    quantised = (weight / spread_blocks(scale, n, k)).clamp(-FP8_MAX, FP8_MAX)
    return quantised.to(torch.float8_e4m3fn), scale


def _add_matrix(
    weights: dict[str, torch.Tensor],
    matrix: Matrix,
    generator: torch.Generator,
    quant: str,
    pow2_scales: bool,
) -> None:
    drawn = torch.randn(matrix.n, matrix.k, generator=generator)
    drawn *= matrix.gain / math.sqrt(matrix.k)
    if not matrix.quantised:
        weights[matrix.name] = drawn.to(torch.bfloat16)
        return
    quantised, scale = quantise_blocks(drawn, pow2_scales)
    if quant == "fp8":
        weights[matrix.name] = quantised
        weights[matrix.name + "_scale_inv"] = scale
    else:
        weights[matrix.name] = dequantise_blocks(quantised, scale).to(torch.bfloat16)


def _add_vocabulary(
    weights: dict[str, torch.Tensor], config: dict[str, Any], generator: torch.Generator
) -> None:
    """Embedding and head; only syllables can win, so that the answer is readable and never ends.

    Each syllable is drawn towards one successor about as strongly as chance favours the best of the
    others. Gaps between the best two tokens are then wide, and the layers still decide.
    """
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    embedding = torch.randn(vocabulary, hidden, generator=generator)
    head = torch.zeros(vocabulary, hidden)
    syllables = torch.arange(FIRST_SYLLABLE, VOCABULARY)
    spread = 4.0 / math.sqrt(hidden)
    head[syllables] = torch.randn(len(syllables), hidden, generator=generator) * spread
    successor = syllables[torch.randperm(len(syllables), generator=generator)]
    direction = torch.nn.functional.normalize(embedding[syllables], dim=1)
    head[successor] += direction * spread * SUCCESSOR_PULL[config["model_type"]]
    weights["model.embed_tokens.weight"] = embedding.to(torch.bfloat16)
    weights["lm_head.weight"] = head.to(torch.bfloat16)

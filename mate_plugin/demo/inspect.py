"""Look a checkpoint over before a server loads it: one line instead of a long traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BLOCK = 128
INDEX_HEAD_DIM = 128


class CheckpointError(ValueError):
    """A checkpoint cannot be served; the message is one readable line."""


def inspect_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return config.json of the checkpoint folder ``path`` if all files fit together.

    Reads headers, not weights: the index, the shards' sizes, one ``weight_scale_inv`` of
    ``[ceil(N/128), ceil(K/128)]`` for each FP8 weight, the gate of Qwen3-MoE models and the indexer
    of DeepSeek-V3.2 ones. Raises CheckpointError that names the file, what was expected and what
    was found.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected the folder of a checkpoint, found none")
    config = _json(folder / "config.json")
    if not config.get("architectures"):
        raise CheckpointError(f"{folder / 'config.json'}: expected 'architectures', found none")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(f"{folder}: expected tokenizer.json or tokenizer.model, found none")
    quantisation = config.get("quantization_config")
    tensors = _tensors(folder)
    if quantisation is not None:
        _check_quantisation(folder, config, quantisation, tensors)
    if config.get("model_type") == "deepseek_v32":
        _check_indexer(folder, config, tensors)
    return config


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: expected a file, found none") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object, found {type(value).__name__}")
    return value


def _tensors(folder: Path) -> dict[str, tuple[str, list[int], Path]]:
    """Name -> (dtype, shape, file) of every tensor, from the headers of the shards."""
    index = folder / "model.safetensors.index.json"
    wanted: dict[str, str] = _json(index).get("weight_map", {}) if index.is_file() else {}
    names = sorted(set(wanted.values())) or sorted(p.name for p in folder.glob("*.safetensors"))
    if not names:
        raise CheckpointError(f"{folder}: expected *.safetensors, found none")
    found: dict[str, tuple[str, list[int], Path]] = {}
    for name in names:
        found.update(_header(folder / name))
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise CheckpointError(f"{index}: expected tensor {missing[0]!r}, found none in the shards")
    return found


def _header(path: Path) -> dict[str, tuple[str, list[int], Path]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a file, found none")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as shard:
            names = list(shard.keys())
            slices = {name: shard.get_slice(name) for name in names}
            return {n: (s.get_dtype(), list(s.get_shape()), path) for n, s in slices.items()}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: broken or cut short: {error}") from None


def _check_quantisation(
    folder: Path,
    config: dict[str, Any],
    quantisation: dict[str, Any],
    tensors: dict[str, tuple[str, list[int], Path]],
) -> None:
    at = f"{folder / 'config.json'}: quantization_config"
    if quantisation.get("quant_method") != "fp8":
        found = quantisation.get("quant_method")
        raise CheckpointError(f"{at}.quant_method: expected 'fp8', found {found!r}")
    block = quantisation.get("weight_block_size")
    if block != [BLOCK, BLOCK]:
        raise CheckpointError(
            f"{at}.weight_block_size: expected [{BLOCK}, {BLOCK}], found {block!r}"
        )
    skipped = quantisation.get("modules_to_not_convert") or []
    for name, (dtype, shape, path) in tensors.items():
        if dtype.startswith("F8") and name.endswith(".weight"):
            scale = tensors.get(name + "_scale_inv")
            expected = [-(-size // BLOCK) for size in shape]
            if scale is None or scale[1] != expected:
                shown = "none" if scale is None else scale[1]
                raise CheckpointError(
                    f"{path}: {name}_scale_inv: expected shape {expected}, found {shown}"
                )
        elif config.get("model_type") == "qwen3_moe" and name.endswith(".mlp.gate.weight"):
            module = name.removesuffix(".weight")
            if not any(module == entry or module.endswith("." + entry) for entry in skipped):
                # The engine would take the 16-bit gate for FP8 and answer with empty tokens.
                raise CheckpointError(
                    f"{at}.modules_to_not_convert: expected {module!r}, found it missing"
                )


def _check_indexer(
    folder: Path, config: dict[str, Any], tensors: dict[str, tuple[str, list[int], Path]]
) -> None:
    at = folder / "config.json"
    for name in ("index_topk", "index_n_heads", "index_head_dim"):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            shown = "none" if value is None else repr(value)
            raise CheckpointError(f"{at}: {name}: expected a whole number above 0, found {shown}")
    if config["index_head_dim"] != INDEX_HEAD_DIM:
        raise CheckpointError(
            f"{at}: index_head_dim: expected {INDEX_HEAD_DIM}, which the engine's cache of keys "
            f"holds with one scale, found {config['index_head_dim']}"
        )
    rows = config["index_n_heads"] * config["index_head_dim"]
    found = False
    for name, (dtype, shape, path) in tensors.items():
        if name.endswith(".indexer.wq_b.weight"):
            found = True
            if shape[0] != rows:
                raise CheckpointError(
                    f"{path}: {name}: expected {rows} rows (index_n_heads * index_head_dim), "
                    f"found {shape[0]}"
                )
        elif name.endswith(".indexer.wk.weight") and dtype.startswith("F8") and shape[1] % BLOCK:
            # The engine shares the columns out evenly among the scales.
            raise CheckpointError(
                f"{path}: {name}: expected columns in whole blocks of {BLOCK}, found {shape[1]}"
            )
    if not found:
        raise CheckpointError(f"{folder}: expected weights of an indexer, found none")

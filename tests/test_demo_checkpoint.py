"""The demonstration's checkpoints: twins agree, files fit together, broken ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mate_plugin.demo.checkpoint import dequantise_blocks, quantise_blocks, write_checkpoint
from mate_plugin.demo.inspect import CheckpointError, inspect_checkpoint

safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("tokenizers")
FAMILIES = ("deepseek-v3", "deepseek-v3.2", "qwen3-moe")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.load_file(folder / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pow2_scales", [False, True])
def test_twin_is_the_dequantised_checkpoint(tmp_path: Path, family: str, pow2_scales: bool) -> None:
    fp8 = weights(write_checkpoint(tmp_path / "a", family, pow2_scales=pow2_scales))
    twin = weights(write_checkpoint(tmp_path / "b", family, "bf16", pow2_scales=pow2_scales))
    quantised = [name for name, tensor in fp8.items() if tensor.dtype == torch.float8_e4m3fn]
    assert quantised
    assert set(twin) == {n for n in fp8 if not n.endswith("_scale_inv")}
    for name, tensor in twin.items():
        if name in quantised:
            exact = dequantise_blocks(fp8[name], fp8[name + "_scale_inv"])
            assert torch.equal(tensor, exact.to(torch.bfloat16))
            if pow2_scales:
                assert torch.equal(tensor.float(), exact)
        else:
            assert torch.equal(tensor, fp8[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_some_blocks_are_partial_and_seeds_differ(tmp_path: Path, family: str) -> None:
    one = weights(write_checkpoint(tmp_path / "a", family, seed=1))
    two = weights(write_checkpoint(tmp_path / "b", family, seed=2))
    shapes = [tensor.shape for tensor in one.values() if tensor.dtype == torch.float8_e4m3fn]
    assert any(n % 128 for n, _ in shapes)
    # vLLM wants whole blocks along K of V3.2's indexer, and so of the hidden size.
    assert any(k % 128 for _, k in shapes) == (family != "deepseek-v3.2")
    assert any(not torch.equal(one[n].float(), two[n].float()) for n in one)


def test_quantise_blocks_uses_the_whole_range_of_every_block() -> None:
    weight = torch.randn(200, 300) * torch.logspace(-3, 3, 300)
    quantised, scale = quantise_blocks(weight)
    assert quantised.shape == (200, 300)
    assert scale.shape == (2, 3)
    assert quantised.float().abs().max() == 448
    error = (dequantise_blocks(quantised, scale) - weight).abs()
    # Three bits of mantissa, and a floor where the block's largest value sets the scale.
    assert (error <= weight.abs() / 16 + weight.abs().max() / 2**9).all()


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="family: expected one of deepseek-v3, "):
        write_checkpoint(tmp_path, "llama")
    with pytest.raises(ValueError, match="size: expected one of tiny, small"):
        write_checkpoint(tmp_path, size="huge")
    with pytest.raises(ValueError, match="quant: expected 'fp8' or 'bf16'"):
        write_checkpoint(tmp_path, quant="int8")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quant", ["fp8", "bf16"])
def test_what_is_written_passes_inspection(tmp_path: Path, family: str, quant: str) -> None:
    folder = write_checkpoint(tmp_path, family, quant)  # type: ignore[arg-type]
    assert inspect_checkpoint(folder)["num_key_value_heads"]


def test_indexer_of_each_layer_has_the_names_and_dtypes_of_the_published_one(
    tmp_path: Path,
) -> None:
    overrides = {"index_topk": 2048, "index_n_heads": 64, "num_hidden_layers": 2}
    folder = write_checkpoint(tmp_path, "deepseek-v3.2", overrides=overrides)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV32ForCausalLM"]
    assert {name: config[name] for name in overrides} == overrides
    stored = {name: tensor for name, tensor in weights(folder).items() if ".indexer." in name}
    kinds = {
        "wq_b.weight": ((64 * 128, 128), torch.float8_e4m3fn),
        "wq_b.weight_scale_inv": ((64, 1), torch.float32),
        "wk.weight": ((128, 384), torch.float8_e4m3fn),
        "wk.weight_scale_inv": ((1, 3), torch.float32),
        "k_norm.weight": ((128,), torch.bfloat16),
        "k_norm.bias": ((128,), torch.float32),
        "weights_proj.weight": ((64, 384), torch.bfloat16),
    }
    assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == {
        f"model.layers.{layer}.self_attn.indexer.{name}": kind
        for layer in range(2)
        for name, kind in kinds.items()
    }


@pytest.mark.parametrize("length", [500, 4608, 33001])
def test_longest_sequence_reaches_tokenizer_and_rope(tmp_path: Path, length: int) -> None:
    folder = write_checkpoint(
        tmp_path, "deepseek-v3.2", overrides={"max_position_embeddings": length}
    )
    config = json.loads((folder / "config.json").read_text())
    scaling = config["rope_scaling"]
    covered = scaling["factor"] * scaling["original_max_position_embeddings"]
    assert length <= covered < length + scaling["factor"]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == config["max_position_embeddings"] == length


def test_tokenizer_reads_back_what_it_wrote(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_checkpoint(tmp_path, "qwen3-moe")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "Grüße, banana! 你好"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|user|>Grüße, banana! 你好<|assistant|>"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(tokens) == text
    assert max(tokens) < 512


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def half_a_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text()[:100])


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(changes)
    path.write_text(json.dumps(config))


def other_blocks(folder: Path) -> None:
    edit_config(folder, weight_block_size=[64, 64])


def other_method(folder: Path) -> None:
    edit_config(folder, quant_method="awq")


def quantised_gate(folder: Path) -> None:
    edit_config(folder, modules_to_not_convert=["lm_head"])


def lost_scale(folder: Path) -> None:
    tensors = weights(folder)
    tensors.pop("model.layers.0.mlp.experts.3.up_proj.weight_scale_inv")
    safetensors.save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut_short, "model.safetensors: broken or cut short"),
        (without_config, "config.json: expected a file, found none"),
        (half_a_config, "config.json: not valid JSON"),
        (without_tokenizer, "expected tokenizer.json or tokenizer.model, found none"),
        (without_weights, "expected *.safetensors, found none"),
        (other_blocks, "weight_block_size: expected [128, 128], found [64, 64]"),
        (other_method, "quant_method: expected 'fp8', found 'awq'"),
        (quantised_gate, "modules_to_not_convert: expected 'model.layers.0.mlp.gate'"),
        (lost_scale, "experts.3.up_proj.weight_scale_inv: expected shape [1, 3], found none"),
    ],
)
def test_broken_checkpoint_is_refused_in_one_line(tmp_path: Path, harm, said: str) -> None:
    folder = write_checkpoint(tmp_path, "qwen3-moe")
    harm(folder)
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"index_topk": None}, "index_topk: expected a whole number above 0, found none"),
        ({"index_topk": 0}, "index_topk: expected a whole number above 0, found 0"),
        ({"index_n_heads": "8"}, "index_n_heads: expected a whole number above 0, found '8'"),
        ({"index_n_heads": 4}, "wq_b.weight: expected 512 rows"),
        ({"index_head_dim": True}, "index_head_dim: expected a whole number above 0, found True"),
        ({"index_head_dim": 72}, "index_head_dim: expected 128"),
    ],
)
def test_indexer_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    path = write_checkpoint(tmp_path, "deepseek-v3.2") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_indexer_that_is_missing_or_has_partial_blocks_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", "deepseek-v3.2", overrides={"hidden_size": 320})
    with pytest.raises(
        CheckpointError, match=r"wk.weight: expected columns in whole blocks of 128"
    ):
        inspect_checkpoint(tmp_path / "a")
    folder = write_checkpoint(tmp_path / "b", "deepseek-v3.2")
    kept = {name: tensor for name, tensor in weights(folder).items() if ".indexer." not in name}
    safetensors.save_file(kept, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="expected weights of an indexer, found none"):
        inspect_checkpoint(folder)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected the folder of a checkpoint, found none"):
        inspect_checkpoint(tmp_path / "nowhere")

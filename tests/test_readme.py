"""What the README claims about names and defaults holds."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from mate_plugin import config
from mate_plugin.kernels import deep_gemm, gemm

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_variable_is_in_the_table_with_its_default() -> None:
    rows = {
        cells[1].strip("`"): (cells[0].strip("`"), cells[2])
        for line in TEXT.splitlines()
        if line.startswith("| ") and "`MATE_PLUGIN_" in line
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    fields = config._variables()
    assert set(rows) == set(fields) | {"MATE_PLUGIN_ISA", "MATE_PLUGIN_IMPL"}
    for variable, keys in fields.items():
        key, default = rows[variable]
        assert key == ".".join(keys)
        if default:
            assert config.load({variable: default}) == config.Settings()


def test_every_named_function_exists() -> None:
    tables = TEXT.split("## The API at a glance")[1].split("```")[0]
    names = re.findall(r"`(\w*(?:gemm|bmm|mqa)\w*)`", tables)
    assert len(names) > 10
    for name in names:
        assert hasattr(gemm, name) or hasattr(deep_gemm, name), name


def test_the_example_runs() -> None:
    code = re.search(r"```python\n(.*?)```", TEXT, re.S)
    assert code is not None
    scope: dict[str, torch.Tensor] = {}
    exec(code[1], scope)
    assert scope["out"].shape == (8, 256)
    assert torch.isfinite(scope["out"]).all()


def test_the_example_of_sparse_attention_runs() -> None:
    text = (DOCS / "sparse-attention.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code is not None
    scope: dict[str, torch.Tensor] = {}
    exec(code[1], scope)
    assert scope["best"][10].tolist() == [*range(11), *[-1] * 21]
    assert scope["out"].shape == (200, 16, 512)
    assert torch.isfinite(scope["out"]).all()

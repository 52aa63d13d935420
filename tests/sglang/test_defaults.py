"""What SGLang serves a model with on mate_cpu when it is told nothing else."""

from __future__ import annotations

import pytest

from mate_plugin.demo.checkpoint import write_checkpoint

OFF = {f"MATE_PLUGIN_SGLANG_{seam}": "0" for seam in ("MOE", "ATTENTION", "SPARSE")}
CASES = [
    ("deepseek-v3", "mla", {}),
    ("deepseek-v3", "chosen_attention", {}),
    ("deepseek-v3", "seams_off", OFF),
    ("deepseek-v3.2", "mla", {}),
    ("deepseek-v3.2", "cache_dtype", {}),
    ("qwen3-moe", "plain", {}),
    ("qwen3-moe", "seams_off", OFF),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize(("family", "case", "env"), CASES)
def test_case(forks, models, family, case, env):
    model = models / family
    if not model.exists():
        write_checkpoint(model, family, size="tiny")
    done = forks.case(f"sglang_default_cases.{case}", MODEL=str(model), **env)
    assert done.returncode == 0, done.output

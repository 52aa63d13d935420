"""The vLLM entry point in processes of its own: what it installs, says, refuses and stops."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from forked import needs_vllm

LOAD = "from vllm.plugins import load_general_plugins; load_general_plugins()\n"


@pytest.mark.parametrize(
    ("group", "function"),
    [("vllm.general_plugins", "register_vllm"), ("vllm.platform_plugins", "vllm_platform")],
)
def test_the_entry_points_are_the_plugins(group, function):
    (entry,) = entry_points(group=group, name="mate")
    assert entry.value == f"mate_plugin.plugin:{function}"


def test_the_plugin_module_imports_nothing_that_can_fail():
    code = "import sys, mate_plugin.plugin; print({'torch', 'pydantic', 'vllm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


INSTALLED = """
from mate_plugin.plugin import register_vllm
register_vllm()
import logging
assert logging.getLogger("mate_plugin").parent.name == "vllm.mate_plugin"
from mate_plugin import report
hooks = {hook.name: hook.installed for hook in report.hooks()}
filled = {"vllm.moe": True, "vllm.linear": True, "vllm.sparse": True}
assert hooks == filled | {"vllm.deep_gemm": False}, report.explain()
from vllm.model_executor.custom_op import op_registry_oot
assert op_registry_oot["SparseAttnIndexer"].__name__ == "MateSparseAttnIndexer"
from vllm.model_executor.layers.quantization import get_quantization_config
assert get_quantization_config("fp8").__name__ == "MateFp8Config"
from vllm.model_executor.kernels import linear
from vllm.platforms import current_platform
names = [k.__name__ for k in linear._POSSIBLE_FP8_BLOCK_KERNELS[current_platform._enum]]
assert names.count("MateFp8BlockScaledMMKernel") == 1
assert names[-1] == "MateFp8BlockScaledMMKernel"
"""


@needs_vllm
def test_installs_once_and_says_so_in_one_line(forks):
    done = forks.run(LOAD + INSTALLED)
    assert done.returncode == 0, done.output
    (line,) = done.said()
    assert "vllm.moe installed (FP8 block MoE: 8-bit x 16-bit, per_expert" in line
    assert "vllm.linear installed (" in line
    assert "vllm.sparse installed (FP8 indexer within 512 MiB, sparse MLA, " in line
    assert "vllm.deep_gemm not installed (switched off here (vllm.deep_gemm: auto))" in line


UNTOUCHED = (
    LOAD
    + """
from vllm.model_executor.layers.quantization import get_quantization_config
assert get_quantization_config("fp8").__name__ == "Fp8Config"
from vllm.model_executor.kernels import linear
kernels = [k.__name__ for table in linear._POSSIBLE_FP8_BLOCK_KERNELS.values() for k in table]
assert not [name for name in kernels if name.startswith("Mate")], kernels
from vllm.model_executor.custom_op import op_registry_oot
assert not op_registry_oot
"""
)


@needs_vllm
@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"VLLM_PLUGINS": ""}, 0),
        ({"VLLM_PLUGINS": "another"}, 0),
        ({"MATE_PLUGIN_ENABLED": "0"}, 1),
        ({f"MATE_PLUGIN_VLLM_{seam}": "0" for seam in ("MOE", "LINEAR", "SPARSE")}, 1),
    ],
    ids=["no plugins", "other plugins", "disabled", "all seams off"],
)
def test_can_be_switched_off(forks, env, said):
    done = forks.run(UNTOUCHED, **env)
    assert done.returncode == 0, done.output
    assert len(done.said()) == said


@needs_vllm
@pytest.mark.parametrize("strict", ["0", "1"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("vllm.__version__ = '0.29.1'", "expected vLLM 0.30, 0.31, 0.32, found 0.29.1"),
        ("vllm.__version__ = '0.34.0'", "expected vLLM 0.30, 0.31, 0.32, found 0.34.0"),
        (
            "from vllm.model_executor.layers.quantization.fp8 import Fp8MoEMethod\n"
            "del Fp8MoEMethod._init_moe_kernel",
            "this vLLM lacks Fp8MoEMethod._init_moe_kernel",
        ),
        (
            "import vllm.model_executor.layers.fused_moe.modular_kernel as mk\n"
            "def apply(self, output, hidden_states, new_argument): ...\n"
            "mk.FusedMoEExpertsModular.apply = apply",
            "the known arguments of FusedMoEExpertsModular.apply",
        ),
        (
            "from vllm.model_executor.kernels import linear\n"
            "del linear._POSSIBLE_FP8_BLOCK_KERNELS",
            "this vLLM lacks the list of block-FP8 kernels",
        ),
        (
            "from vllm.model_executor.models import deepseek_v2\n"
            "del deepseek_v2.per_token_group_quant_fp8",
            "this vLLM lacks vllm.model_executor.models.deepseek_v2.per_token_group_quant_fp8",
        ),
        (
            "from vllm.platforms.cpu import CpuPlatform\n"
            "CpuPlatform.get_attn_backend_cls = classmethod(lambda *_: 'vllm.SparseMLA')",
            "the platform has sparse attention of its own: vllm.SparseMLA",
        ),
        (
            "import vllm.platforms\n"
            "from vllm.platforms.cpu import CpuPlatform\n"
            "vllm.platforms._current_platform = CpuPlatform()",
            "vllm.sparse not installed (expected the platform of mate-plugin, found CpuPlatform)",
        ),
        (
            "import os, vllm.platforms\n"
            "os.environ['VLLM_TARGET_DEVICE'] = 'cpu'\n"
            "vllm.platforms._current_platform = None",
            "VLLM_TARGET_DEVICE=cpu makes vLLM skip platform plugins; unset it",
        ),
    ],
    ids=[
        "too old",
        "too new",
        "method",
        "arguments",
        "kernel list",
        "quantisation",
        "sparse attention",
        "platform",
        "target device",
    ],
)
def test_a_missing_hook_is_named_and_stops_a_strict_engine(forks, damage, reason, strict):
    done = forks.run(f"import vllm\n{damage}\n{LOAD}print('went on')", MATE_PLUGIN_STRICT=strict)
    (line,) = done.said()
    assert reason in line
    assert "not installed" in line.replace("vllm.deep_gemm not installed", "")
    if strict == "1":
        assert done.returncode == 1
        assert "went on" not in done.output
        assert "Traceback" not in done.output
        assert line.endswith("strict is set")
    else:
        assert done.returncode == 0, done.output
        assert "went on" in done.output


@needs_vllm
def test_a_version_on_trial_is_taken_when_all_seams_are_there(forks):
    done = forks.run(f"import vllm\nvllm.__version__ = '0.33.0'\n{LOAD}", MATE_PLUGIN_STRICT="1")
    assert done.returncode == 0, done.output


@needs_vllm
@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"MATE_PLUGIN_GEMM_MODE": "ragged"}, "MATE_PLUGIN_GEMM_MODE"),
        ({"MATE_PLUGIN_GEM_MODE": "auto"}, "did you mean 'MATE_PLUGIN_GEMM_MODE'"),
        ({"MATE_PLUGIN_CONFIG": "/nonexistent.yaml"}, "MATE_PLUGIN_CONFIG"),
    ],
)
def test_broken_settings_stop_the_process_with_one_line(forks, env, message):
    done = forks.run(LOAD + "print('went on')", **env)
    assert done.returncode == 1
    assert "went on" not in done.output
    assert "Traceback" not in done.output
    (line,) = done.said()
    assert message in line


@needs_vllm
def test_a_forced_kernel_reaches_the_core(forks):
    done = forks.run(
        LOAD + "from mate_plugin.kernels import library; assert library.isa() == 'scalar'",
        MATE_PLUGIN_KERNEL="scalar",
    )
    assert done.returncode == 0, done.output


@needs_vllm
def test_the_layout_settings_reach_the_plan(forks):
    done = forks.run(LOAD, MATE_PLUGIN_GEMM_MODE="per_token", MATE_PLUGIN_ALIGNMENT_M="128")
    assert done.returncode == 0, done.output
    (line,) = done.said()
    assert "8-bit x 16-bit, per_token/128" in line


@needs_vllm
@pytest.mark.parametrize("strict", ["0", "1"])
def test_a_granularity_that_no_layer_serves_installs_nothing(forks, strict):
    settings = {"MATE_PLUGIN_SCALE_GRANULARITY": "1,-1,-1", "MATE_PLUGIN_STRICT": strict}
    done = forks.run(LOAD + "print('went on')", **settings)
    assert ("went on" in done.output) == (strict == "0")
    (line,) = done.said()
    assert line.count("scale_granularity: the layers serve 1,128,128, got 1,-1,-1") == 2

"""The SGLang entry points in processes of their own: what they install, say, refuse and stop."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from mate_plugin.config import SglangSettings

LOAD = "from sglang.srt.plugins import load_plugins; load_plugins()\n"
STATE = "from sglang_state import state\nbefore = state()\n"
ON_MATE_CPU = ("sglang.moe", "sglang.linear", "sglang.attention", "sglang.sparse")


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize(
    ("group", "name", "function"),
    [
        ("sglang.srt.plugins", "mate", "register_sglang"),
        ("sglang.srt.platforms", "mate_cpu", "sglang_platform"),
    ],
)
def test_the_entry_points_are_the_plugins(group, name, function):
    (entry,) = entry_points(group=group, name=name)
    assert entry.value == f"mate_plugin.plugin:{function}"


INSTALLED = f"""
from mate_plugin import report
on = {{hook.name for hook in report.hooks() if hook.installed}}
assert on >= set({ON_MATE_CPU!r}), report.explain()
assert not on & {{"sglang.deep_gemm", "sglang.moe_deep_gemm"}}, report.explain()
after = state()
assert [new for new in after["runners"] if new not in before["runners"]] == ["mate"]
assert [new for new in after["attention choices"] if new not in before["attention choices"]] == [
    "mate_mha", "mate_dsa"]
assert set(after["attention"]) - set(before["attention"]) == {{"mate_mha", "mate_dsa"}}
assert after["cores"] == ["mate"]
assert {{op.__name__ for op in after["forwards"]["mate_cpu"]}} == {{
    "UnquantizedFusedMoEMethod", "Indexer"}}
from mate_plugin.plugin import register_sglang
register_sglang()
assert state() == after, "a second call has changed something"
"""


def test_installs_once_and_says_so_in_one_line(forks):
    done = forks.run(STATE + LOAD + INSTALLED)
    assert done.returncode == 0, done.output
    (line,) = done.said()
    assert "sglang.moe installed (--moe-runner-backend mate: 8-bit x 16-bit, per_expert" in line
    assert "sglang.linear installed (block-FP8 linear: 8-bit x 16-bit" in line
    assert "sglang.attention installed (--attention-backend mate_mha: " in line
    assert "sglang.sparse installed (--attention-backend mate_dsa: FP8 indexer within 512" in line
    assert "sglang.deep_gemm not installed (switched off here (sglang.deep_gemm: auto))" in line
    assert "sglang.moe_deep_gemm not installed (switched off in the settings" in line


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"SGLANG_PLUGINS": "none"}, 0),
        ({"MATE_PLUGIN_ENABLED": "0"}, 1),
        ({f"MATE_PLUGIN_SGLANG_{seam.upper()}": "0" for seam in SglangSettings.model_fields}, 1),
    ],
    ids=["no plugins", "disabled", "all seams off"],
)
def test_can_be_switched_off(forks, env, said):
    done = forks.run(STATE + LOAD + "assert state() == before", **env)
    assert done.returncode == 0, done.output
    assert len(done.said()) == said


@pytest.mark.parametrize("strict", ["0", "1"])
@pytest.mark.parametrize(
    ("damage", "reason", "hooks"),
    [
        (
            "from mate_plugin.layers import sglang_release\n"
            "sglang_release.version = lambda: '0.5.22'",
            "expected SGLang 0.5.23, found 0.5.22",
            (*ON_MATE_CPU, "sglang.deep_gemm"),
        ),
        (
            # The base class has one too, which only raises.
            "from sglang.srt.layers.quantization.base_config import FusedMoEMethodBase\n"
            "from sglang.srt.layers.quantization.fp8 import Fp8MoEMethod\n"
            "del Fp8MoEMethod.get_triton_quant_info, FusedMoEMethodBase.get_triton_quant_info",
            "lacks sglang.srt.layers.quantization.fp8.Fp8MoEMethod.get_triton_quant_info",
            ("sglang.moe",),
        ),
        (
            "from sglang.srt.layers import linear\ndel linear.WEIGHT_LOADER_V2_SUPPORTED",
            "lacks sglang.srt.layers.linear.WEIGHT_LOADER_V2_SUPPORTED",
            ("sglang.linear",),
        ),
        (
            "from sglang.srt.layers.attention import torch_native_backend\n"
            "del torch_native_backend.scaled_dot_product_attention",
            "lacks sglang.srt.layers.attention.torch_native_backend.scaled_dot_product_attention",
            ("sglang.attention",),
        ),
        (
            "from sglang.srt.layers.attention.dsa.dsa_indexer import Indexer\n"
            "del Indexer._get_topk_paged",
            "lacks sglang.srt.layers.attention.dsa.dsa_indexer.Indexer._get_topk_paged",
            ("sglang.sparse",),
        ),
        (
            "from sglang.srt.layers.attention.dsa import utils\ndel utils.resolve_num_sms",
            "lacks sglang.srt.layers.attention.dsa.utils.resolve_num_sms",
            ("sglang.sparse",),
        ),
    ],
    ids=["version", "moe", "linear", "attention", "indexer", "resolver"],
)
def test_a_missing_hook_is_named_and_stops_a_strict_engine(forks, damage, reason, hooks, strict):
    # SGLang logs and forgets what a plugin raises, except what must end the process.
    done = forks.run(f"{damage}\n{LOAD}print('went on')", MATE_PLUGIN_STRICT=strict)
    (line,) = done.said()
    for hook in hooks:
        said = reason if reason.startswith("expected") else f"SGLang 0.5.23 {reason}"
        assert f"{hook} not installed ({said})" in line
    assert "Traceback" not in done.output
    assert ("went on" in done.output) == (strict == "0")
    assert done.returncode == int(strict), done.output
    assert line.endswith("strict is set") == (strict == "1")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"MATE_PLUGIN_GEMM_MODE": "ragged"}, "MATE_PLUGIN_GEMM_MODE"),
        ({"MATE_PLUGIN_SGLANG_MEO": "1"}, "did you mean 'MATE_PLUGIN_SGLANG_MOE'"),
        ({"MATE_PLUGIN_CONFIG": "/nonexistent.yaml"}, "MATE_PLUGIN_CONFIG"),
    ],
)
def test_broken_settings_stop_the_process_with_one_line(forks, env, message):
    for asked in (LOAD, PLATFORM):
        done = forks.run(asked + "print('went on')", **env)
        assert done.returncode == 1
        assert "went on" not in done.output
        assert "Traceback" not in done.output
        (line,) = done.said()
        assert message in line


@pytest.mark.parametrize("strict", ["0", "1"])
def test_a_granularity_that_no_layer_serves_installs_no_layer(forks, strict):
    settings = {"MATE_PLUGIN_SCALE_GRANULARITY": "1,-1,-1", "MATE_PLUGIN_STRICT": strict}
    done = forks.run(LOAD + "print('went on')", **settings)
    assert ("went on" in done.output) == (strict == "0")
    (line,) = done.said()
    assert line.count("scale_granularity: the layers serve 1,128,128, got 1,-1,-1") == 2


# As in a process that has not asked for its platform yet.
PLATFORM = """
import sglang.srt.platforms as platforms
platforms._current_platform = None
name = platforms.current_platform.device_name
"""


def test_the_platform_is_ours_where_it_is_asked_for(forks):
    done = forks.run(
        PLATFORM + "assert name == 'mate_cpu'\n"
        "assert type(platforms.current_platform).__qualname__ == 'MateCpuPlatform'"
    )
    assert done.returncode == 0, done.output


@pytest.mark.parametrize("platform", ["", "other"])
def test_the_platform_is_offered_for_its_name_only(forks, platform):
    code = "from mate_plugin.plugin import sglang_platform; assert sglang_platform() is None"
    done = forks.run(code, SGLANG_PLATFORM=platform)
    assert done.returncode == 0, done.output


@pytest.mark.parametrize(
    ("damage", "env", "reason"),
    [
        ("", {"MATE_PLUGIN_ENABLED": "0"}, "enabled is false"),
        (
            "from mate_plugin.layers import sglang_release\n"
            "sglang_release.version = lambda: '0.5.22'",
            {},
            "expected SGLang 0.5.23, found 0.5.22",
        ),
    ],
    ids=["disabled", "version"],
)
def test_a_platform_that_cannot_serve_stops_the_process(forks, damage, env, reason):
    done = forks.run(f"{damage}\n{PLATFORM}print('went on')", **env)
    assert done.returncode == 1
    assert "went on" not in done.output
    assert "Traceback" not in done.output
    assert done.said() == [f"mate-plugin: SGLANG_PLATFORM=mate_cpu cannot be served: {reason}"]


def test_nothing_is_activated_in_a_process_that_names_no_platform(forks):
    code = (
        "from sglang.srt.platforms import current_platform as found\n"
        "from sglang.srt.plugins import load_plugins; load_plugins()\n"
        "from mate_plugin import report\n"
        "print(type(found).__module__, [hook.name for hook in report.hooks() if hook.installed])"
    )
    env = {k: v for k, v in forks.environ.items() if k != "SGLANG_PLATFORM"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module, installed = done.stdout.splitlines()[-1].split(" ", 1)
    assert module.startswith("sglang.")
    assert installed == "[]"

"""Settings: files, variables, and errors that one can read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mate_plugin.config import ConfigError, Settings, load, settings, shipped_configs


def write(folder: Path, text: str) -> dict[str, str]:
    path = folder / "mine.yaml"
    path.write_text(text)
    return {"MATE_PLUGIN_CONFIG": str(path)}


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_are_those_of_the_shipped_default_file() -> None:
    assert load({}) == load({"MATE_PLUGIN_CONFIG": "default"}) == Settings()


@pytest.mark.parametrize("name", ["default", "deepseek_v3", "deepseek_v32", "qwen3_moe"])
def test_shipped_files_load_by_bare_name_and_by_path(name: str) -> None:
    path = shipped_configs()[name]
    assert load({"MATE_PLUGIN_CONFIG": name}) == load({"MATE_PLUGIN_CONFIG": str(path)})


def test_model_files_differ_from_the_default_where_they_say_so() -> None:
    assert load({"MATE_PLUGIN_CONFIG": "deepseek_v3"}).strict
    assert load({"MATE_PLUGIN_CONFIG": "deepseek_v32"}).logits_budget_mb == 256
    assert load({"MATE_PLUGIN_CONFIG": "qwen3_moe.yaml"}).alignment_m == 1


def test_variables_win_over_the_file(tmp_path: Path) -> None:
    text = "gemm_mode: masked\nalignment_m: 256\nvllm: {moe: false}\n"
    environ = write(tmp_path, text + "sglang: {moe: true, sparse: true, indexer: true}\n")
    environ |= {
        "MATE_PLUGIN_GEMM_MODE": "psum_expert",
        "MATE_PLUGIN_VLLM_LINEAR": "off",
        "MATE_PLUGIN_SCALE_GRANULARITY": "1, -1, -1",
        "MATE_PLUGIN_LOGITS_BUDGET_MB": "64",
        "MATE_PLUGIN_CHECK": "1",
        "MATE_PLUGIN_REPORT": "out",
        "MATE_PLUGIN_DUMP_SELECTIONS": "chosen",
        "MATE_PLUGIN_VLLM_DEEP_GEMM": "yes",
        "MATE_PLUGIN_SGLANG_MOE": "auto",
        "MATE_PLUGIN_SGLANG_INDEXER": "off",
        "MATE_PLUGIN_SGLANG_MOE_DEEP_GEMM": "1",
        "MATE_PLUGIN_ISA": "scalar",
    }
    loaded = load(environ)
    assert loaded.gemm_mode == "psum_expert"
    assert loaded.alignment_m == 256
    assert (loaded.vllm.moe, loaded.vllm.linear) == (False, False)
    assert loaded.scale_granularity == (1, -1, -1)
    assert loaded.logits_budget_mb == 64
    assert loaded.check
    assert loaded.report == Path("out")
    assert loaded.dump_selections == Path("chosen")
    assert loaded.vllm.deep_gemm is True
    assert (loaded.sglang.moe, loaded.sglang.linear) == ("auto", "auto")
    assert (loaded.sglang.sparse, loaded.sglang.indexer) == (True, False)
    assert loaded.sglang.moe_deep_gemm is True


def test_nvidia_gpus_are_left_to_engines_by_default() -> None:
    off, on = load({}).cuda, load({"MATE_PLUGIN_CUDA_MOE": "1"}).cuda
    assert (off.moe, off.linear) == (False, False)
    assert (on.moe, on.linear) == (True, False)


def test_seams_of_sglang_are_left_to_the_platform_by_default() -> None:
    seams = load({}).sglang.model_dump()
    assert seams.pop("moe_deep_gemm") is False
    assert set(seams.values()) == {"auto"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("auto", "auto"), ("true", True), ("off", False), ("'yes'", True), ("'0'", False)],
)
def test_a_seam_of_sglang_is_auto_or_a_switch(tmp_path: Path, text: str, value: object) -> None:
    assert load(write(tmp_path, f"sglang: {{attention: {text}}}")).sglang.attention is value
    environ = {"MATE_PLUGIN_SGLANG_ATTENTION": text.strip("'")}
    assert load(environ).sglang.attention is value


def test_settings_are_cached_and_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    settings.cache_clear()
    monkeypatch.setenv("MATE_PLUGIN_STRICT", "yes")
    first = settings()
    assert first.strict
    assert settings() is first
    with pytest.raises(ValueError, match="frozen"):
        first.strict = False  # type: ignore[misc]
    settings.cache_clear()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("MATE_PLUGIN_GEM_MODE", "MATE_PLUGIN_GEMM_MODE"),
        ("MATE_PLUGIN_CONFG", "MATE_PLUGIN_CONFIG"),
        ("MATE_PLUGIN_VLLM_MEO", "MATE_PLUGIN_VLLM_MOE"),
        ("MATE_PLUGIN_SGLANG_SPARS", "MATE_PLUGIN_SGLANG_SPARSE"),
    ],
)
def test_unknown_variable_names_the_nearest(name: str, nearest: str) -> None:
    assert refusal({name: "x"}).endswith(f"unknown variable {name!r}; did you mean {nearest!r}?")


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("gem_mode: auto", "gem_mode", "gemm_mode"),
        ("vllm: {linaer: true}", "vllm.linaer", "vllm.linear"),
        ("sglang: {atention: true}", "sglang.atention", "sglang.attention"),
        ("Strict: true", "Strict", "strict"),
        ("7: true", "7", ""),
    ],
)
def test_unknown_key_names_file_and_nearest(
    tmp_path: Path, text: str, unknown: str, nearest: str
) -> None:
    message = refusal(write(tmp_path, text))
    assert message.startswith(f"{tmp_path / 'mine.yaml'}: unknown key {unknown!r}")
    assert f"did you mean '{nearest}" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gemm_mode: fast", "gemm_mode: expected one of 'auto', 'per_token', "),
        ("alignment_m: 64", "alignment_m: expected one of 'auto', 1, 128, 256, found 64"),
        ("alignment_m: true", "alignment_m: expected a whole number, found True"),
        ("strict: 3", "strict: expected true or false, found 3"),
        ("logits_budget_mb: -4", "logits_budget_mb: expected a whole number above 0, found -4"),
        ("logits_budget_mb: 1.5", "logits_budget_mb: expected a whole number, found 1.5"),
        ("scale_granularity: [1, 64, 64]", "scale_granularity: expected one of [1, 128, 128], "),
        ("scale_granularity: 128", "scale_granularity: expected one of"),
        ("vllm: {deep_gemm: perhaps}", "vllm.deep_gemm: expected auto, true or false, found"),
        ("vllm: 3", "vllm: expected a mapping of keys, found 3"),
        ("sglang: {linear: 2}", "sglang.linear: expected auto, true or false, found 2"),
        ("sglang: {moe_deep_gemm: auto}", "sglang.moe_deep_gemm: expected true or false, found"),
        ("sglang: [moe]", "sglang: expected a mapping of keys, found ['moe']"),
        ("report: [a]", "report: expected a path, found ['a']"),
        ("- strict", "expected a mapping of keys, found ['strict']"),
        ("strict: [", "not valid YAML"),
        ("strict: true\nstrict: false", ":2: not valid YAML: key 'strict' is given twice"),
    ],
)
def test_wrong_value_names_file_key_expected_and_found(
    tmp_path: Path, text: str, said: str
) -> None:
    message = refusal(write(tmp_path, text))
    assert message.startswith(str(tmp_path / "mine.yaml"))
    assert said in message


def test_wrong_variable_names_itself() -> None:
    message = refusal({"MATE_PLUGIN_STRICT": "maybe"})
    assert message == "MATE_PLUGIN_STRICT: strict: expected true or false, found 'maybe'"


def test_bad_section_is_refused_with_a_variable_in_it_too(tmp_path: Path) -> None:
    environ = write(tmp_path, "vllm: 3") | {"MATE_PLUGIN_VLLM_MOE": "1"}
    assert "vllm: expected a mapping of keys, found 3" in refusal(environ)


def test_missing_file_lists_the_shipped_ones() -> None:
    message = refusal({"MATE_PLUGIN_CONFIG": "deepseek_v33"})
    assert "deepseek_v3, deepseek_v32, default, qwen3_moe" in message
    assert "did you mean 'deepseek_v3" in message


def test_kernel_and_isa_must_agree() -> None:
    both = {"MATE_PLUGIN_KERNEL": "avx2", "MATE_PLUGIN_ISA": "scalar"}
    assert refusal(both).startswith("MATE_PLUGIN_KERNEL: kernel: expected 'scalar' or 'auto'")
    assert load({"MATE_PLUGIN_KERNEL": "scalar", "MATE_PLUGIN_ISA": "scalar"}).kernel == "scalar"


def test_importing_config_loads_no_torch_and_no_engine() -> None:
    code = (
        "import sys, mate_plugin.config\n"
        "print([m for m in ('torch', 'vllm', 'sglang') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

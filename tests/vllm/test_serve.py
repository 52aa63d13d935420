"""FP8 models served by vLLM through the plugin, against the same weights in bf16 without it."""

from __future__ import annotations

import functools
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from engine_server import NEW_TOKENS, Answer, prompts, read_reports
from judging import NEAR_TIE, divergences, judge
from served_models import (
    calls,
    expected_layers,
    forward_passes,
    kv_b_shape,
    served_config,
    write_twins,
)
from torch_model import Model
from torch_ops import BLOCK
from vllm_server import Server

from mate_plugin.kernels import packing

pytestmark = [
    pytest.mark.served,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
has_amx = torch.cpu._is_amx_tile_supported()

FAMILIES = ("deepseek-v3", "qwen3-moe")
# FP8 activations turn a changed last bit into a sixteenth of an element.
NEAR_TIE_FP8 = 0.5
MODES: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "reference": ("bf16", ["--enforce-eager"], {"VLLM_PLUGINS": ""}),
    "eager": ("fp8", ["--enforce-eager"], {}),
    "compiled": ("fp8", [], {}),
    "fp8 activations": ("fp8", ["--enforce-eager"], {"MATE_PLUGIN_ACTIVATION": "fp8"}),
}


@dataclass(frozen=True)
class Run:
    """What one server said and counted."""

    answers: list[Answer]
    chat: str
    reports: list[dict]
    log: str


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> dict[str, dict[str, Path]]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: write_twins(root, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def serve(twins, tmp_path_factory):
    """A function that starts the server of a family and mode once, and keeps what it gave."""
    root = tmp_path_factory.mktemp("servers")

    @functools.cache
    def run(family: str, mode: str) -> Run:
        quant, options, env = MODES[mode]
        name = f"{family}-{mode}".replace(" ", "-")
        counts = root / f"{name}-counts"
        ours = {} if mode == "reference" else {"MATE_PLUGIN_STRICT": "1"}
        ours |= {"MATE_PLUGIN_REPORT": str(counts)} | env
        server = Server(twins[family][quant], root / f"{name}.log", *options, env=ours)
        try:
            server.wait()
            begin = time.monotonic()
            answers = server.ask_all(prompts(), 4)
            chat = server.chat("Tell me something.")
            asked = time.monotonic() - begin
            reports = read_reports(counts)
        finally:
            server.stop()
        print(f"\n{name}: ready after {server.started_s:.0f} s, answered in {asked:.0f} s")
        return Run(answers, chat, reports, server.text())

    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_twins_hold_the_same_numbers(twins, family):
    from safetensors.torch import load_file

    fp8, bf16 = (load_file(twins[family][q] / "model.safetensors") for q in ("fp8", "bf16"))
    quantised = 0
    for name, weight in bf16.items():
        stored, scale = fp8[name], fp8.get(name + "_scale_inv")
        if scale is None:
            assert torch.equal(stored, weight), name
            continue
        quantised += 1
        n, k = stored.shape
        spread = scale.repeat_interleave(BLOCK, 0)[:n].repeat_interleave(BLOCK, 1)[:, :k]
        assert torch.equal(stored.double() * spread.double(), weight.double()), name
    assert quantised > 20


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_greedy_tokens_as_the_dequantised_model(serve, family, mode):
    reference, ours = serve(family, "reference"), serve(family, mode)
    lines, gaps, mean = divergences(reference.answers, ours.answers, prompts())
    print(f"\n{family}, {mode}, mean logprob difference {mean:.4f}", *lines, sep="\n  ")
    assert all(gap <= NEAR_TIE for gap in gaps), lines
    # A scale that is wrong by 5% moves the mean logprob by 0.1, and a tenth of the tokens.
    assert mean < 0.02
    assert ours.chat


@pytest.mark.parametrize("family", FAMILIES)
def test_fp8_activations_agree_with_a_torch_model_that_rounds_alike(serve, twins, family):
    """Each token is judged after the tokens before it, as the server chose them."""
    answers = serve(family, "fp8 activations").answers
    gaps, mean = judge(Model(twins[family]["fp8"], fp8=True), answers)
    unrounded = Model(twins[family]["fp8"], fp8=False)
    _, mean_unrounded = judge(unrounded, answers)
    _, kept = judge(unrounded, serve(family, "eager").answers)
    ties = sorted(gap for gap in gaps if gap > 0)
    print(
        f"\n{family}: {len(gaps) - len(ties)} of {len(gaps)} tokens are the torch model's own, "
        f"gaps of the others {[round(gap, 4) for gap in ties]}; mean logprob difference "
        f"{mean:.4f}, to a model that does not round {mean_unrounded:.4f} (with activations kept "
        f"in bf16 {kept:.4f})"
    )
    assert all(gap <= NEAR_TIE_FP8 for gap in ties)
    assert mean < 0.12
    # The server does round: it is further from the model that does not than bf16 alone takes it.
    assert kept < mean_unrounded / 2
    # Deeper models bury the rounding under flips of single codes, which the last bits of bf16
    # decide: there only the layers' own tests and the counters tell the two numerics apart. With
    # AMX vLLM's own linear layers do not round.
    if family == "qwen3-moe" and not has_amx:
        assert mean < 0.6 * mean_unrounded


@pytest.mark.skipif(has_amx, reason="vLLM has kernels of its own on this machine")
@pytest.mark.parametrize("mode", ["eager", "compiled", "fp8 activations"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_fp8_call_was_ours(serve, twins, family, mode):
    """As many layers of each shape as the model has, and all of them ran in every forward pass."""
    config = served_config(twins[family]["fp8"])
    run = serve(family, mode)
    (worker,) = [report for report in run.reports if report["layers"]]
    counts = {(one["kind"], one["shape"]): one for one in worker["layers"]}
    assert {key: one["built"] for key, one in counts.items()} == expected_layers(config)

    assert forward_passes(counts, config) > NEW_TOKENS
    if kv_b := counts.get(("linear", kv_b_shape(config))):
        assert kv_b["calls"] > 0

    moe, linear = calls(counts, "moe"), calls(counts, "linear")
    kernels = {one["op"]: one["calls"] for one in worker["counters"]}
    assert kernels["fused_experts"] == moe
    assert kernels["batched_gemm"] == linear
    built = {
        kind: sum(one["built"] for key, one in counts.items() if key[0] == kind)
        for kind in ("moe", "linear")
    }
    # MLA reads the rows of kv_b_proj.
    kept = counts[key]["built"] if (key := ("linear", kv_b_shape(config))) in counts else 0
    packed = 2 * built["moe"] + built["linear"] - kept
    wanted = packing.wanted(torch.float8_e4m3fn)
    assert kernels.get("pack_weights", 0) == (packed if wanted else 0)
    rounded = moe if mode == "fp8 activations" else 0
    assert kernels.get("group_quant_fp8", 0) == rounded + bool(rounded) * linear


@pytest.mark.parametrize("family", FAMILIES)
def test_each_process_says_once_what_it_installed(serve, family):
    run = serve(family, "eager")
    said = [line for line in run.log.splitlines() if "mate-plugin: vllm.moe installed" in line]
    assert len(said) == len(run.reports) >= 2
    for report in run.reports:
        hooks = {hook["name"]: hook["installed"] for hook in report["installed"]}
        # For GPUs.
        assert not hooks.pop("vllm.deep_gemm")
        assert all(hooks.values())
    reference = serve(family, "reference")
    assert "mate-plugin:" not in reference.log
    assert not reference.reports


@pytest.mark.skipif(has_amx, reason="vLLM has kernels of its own on this machine")
@pytest.mark.parametrize(
    ("family", "env"),
    [("deepseek-v3", {"VLLM_PLUGINS": ""}), ("qwen3-moe", {"MATE_PLUGIN_ENABLED": "0"})],
    ids=["no plugins", "disabled"],
)
def test_without_the_plugin_vllm_refuses_as_before(twins, tmp_path, family, env):
    server = Server(twins[family]["fp8"], tmp_path / "log", "--enforce-eager", env=env)
    try:
        assert server.ended() != 0
    finally:
        server.stop()
    assert "Failed to find a kernel" in server.text()
    assert "CPUFp8BlockScaledMMKernel requires AMX tile support" in server.text()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"MATE_PLUGIN_GEMM_MODE": "ragged"}, "gemm_mode: expected one of"),
        ({"MATE_PLUGIN_CONFIG": "no-such-file"}, "MATE_PLUGIN_CONFIG: expected"),
    ],
)
def test_broken_settings_end_the_server_with_one_readable_line(twins, tmp_path, env, message):
    server = Server(twins["qwen3-moe"]["fp8"], tmp_path / "log", env=env)
    try:
        assert server.ended() == 1
    finally:
        server.stop()
    (line,) = [line for line in server.text().splitlines() if "mate-plugin" in line]
    assert message in line
    assert "Traceback" not in server.text()

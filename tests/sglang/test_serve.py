"""Models served by SGLang through the plugin, against plain torch, against vLLM with the plugin and
against SGLang's own path."""

from __future__ import annotations

import functools
import json
import os
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from engine_server import NEW_TOKENS, Answer, cores_of_each, prompts, read_reports
from judging import NEAR_TIE, divergences, judge
from served_models import HALVES, write_twins
from sglang_server import SglangServer
from torch_model import Model

from mate_plugin.demo.checkpoint import write_checkpoint

pytestmark = pytest.mark.served
ROOT = Path(__file__).parent.parent.parent
VLLM_PYTHON = Path(os.environ.get("MATE_VLLM_PYTHON", ROOT / ".venv" / "bin" / "python"))
CLIENTS = 8
QWEN, DEEPSEEK, SPARSE = "qwen3-moe", "deepseek-v3", "deepseek-v3.2"
# What is served of each family: Qwen in bf16, which SGLang's own path can compute too.
QUANT = {QWEN: "bf16", DEEPSEEK: "fp8", SPARSE: "fp8"}
FAMILIES = tuple(QUANT)
# SGLang wants a NUMA node for each rank where their cores are not named.
TWO_RANKS = {"SGLANG_CPU_OMP_THREADS_BIND": cores_of_each(2)}
# Generated one by one, and read as a prompt.
REREAD = 0.005
# With AMX torch's own 16-bit layers sum a prompt in another order than a token.
if torch.cpu._is_amx_tile_supported():
    REREAD = 0.05
# Mean differences of logprobs. A scale that is wrong by 5% moves them by 0.1; keys on the edge of
# an FP8 code by less.
NEAR = {QWEN: 0.05, DEEPSEEK: 0.05, SPARSE: 0.1}


@dataclass(frozen=True)
class Run:
    """What one server said and counted."""

    answers: list[Answer]
    alone: list[Answer]
    reread: list[float]
    chat: str
    titles: dict[int, str]
    reports: list[dict]
    log: str


@pytest.fixture(scope="session")
def twins(tmp_path_factory) -> dict[str, dict[str, Path]]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: write_twins(root, family, HALVES[family]) for family in FAMILIES}


@pytest.fixture(scope="session")
def serve(twins, tmp_path_factory):
    """A function that serves a family once with given options, and keeps what came of it."""
    root = tmp_path_factory.mktemp("servers")

    @functools.cache
    def run(family: str, *options: str) -> Run:
        work = root / "-".join((family, *options)).replace("/", "-")
        work.mkdir()
        env = {"MATE_PLUGIN_STRICT": "1", "MATE_PLUGIN_REPORT": str(work / "reports")}
        env |= TWO_RANKS if "--tp-size" in options else {}
        server = SglangServer(twins[family][QUANT[family]], work / "log", *options, env=env)
        try:
            server.wait()
            begin = time.monotonic()
            answers = server.ask_all(prompts(), CLIENTS)
            alone = [server.ask(prompt) for prompt in prompts()[::3]]
            reread = [
                difference
                for prompt, answer in zip(prompts(), answers, strict=True)
                for difference in reread_differences(server, prompt, answer)
            ]
            chat = server.chat("Tell me something.")
            asked = time.monotonic() - begin
            reports = read_reports(work / "reports")
            titles = {one["pid"]: title(one["pid"]) for one in reports}
        finally:
            server.stop()
        print(f"\n{work.name}: ready after {server.started_s:.0f} s, answered in {asked:.0f} s")
        return Run(answers, alone, reread, chat, titles, reports, server.text())

    return run


def reread_differences(server: SglangServer, prompt: list[int], answer: Answer) -> list[float]:
    """How far logprobs of generated tokens move when they are read again, and nothing is cached."""
    urllib.request.urlopen(f"{server.url}/flush_cache", data=b"")
    read = server.logprobs_of(prompt, token_ids(answer))
    said = [row[token] for token, row in zip(answer.tokens, answer.top, strict=True)]
    return [abs(a - b) for a, b in zip(said, read, strict=True)]


def token_ids(answer: Answer) -> list[int]:
    return [int(token.split(":")[1]) for token in answer.tokens]


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_a_torch_model(serve, twins, family):
    """Each token is judged after the tokens before it, as the server chose them."""
    folder, answers = twins[family][QUANT[family]], serve(family).answers
    gaps, mean = judge(Model(folder, fp8=False), answers)
    ties = sorted(gap for gap in gaps if gap > 0)
    print(
        f"\n{family}: {len(gaps) - len(ties)} of {len(gaps)} tokens are the torch model's own, gaps"
        f" of the others {[round(gap, 4) for gap in ties]}; mean logprob difference {mean:.4f}"
    )
    assert all(gap <= NEAR_TIE for gap in ties)
    assert mean < NEAR[family]
    if family == SPARSE:
        dense = Model(folder, fp8=False)
        dense.config["index_topk"] = 1 << 20
        _, far = judge(dense, answers)
        print(f"  to a model that reads all tokens {far:.4f}")
        assert far > 2 * mean


@pytest.mark.parametrize("family", FAMILIES)
def test_clients_do_not_disturb_each_other(serve, family):
    run = serve(family)
    assert len(run.answers) == CLIENTS
    for together, alone in zip(run.answers[::3], run.alone, strict=True):
        assert together.tokens == alone.tokens
    assert run.chat


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_generated_tokens_gives_their_logprobs(serve, family):
    worst = max(serve(family).reread)
    print(f"\n{family}: generated against read again, at most {worst:.6f}")
    assert worst < REREAD


@pytest.mark.skipif(not VLLM_PYTHON.exists(), reason=f"vLLM's environment is not at {VLLM_PYTHON}")
@pytest.mark.parametrize("family", [DEEPSEEK, SPARSE])
def test_tokens_are_those_of_vllm_with_the_plugin(serve, twins, tmp_path, family):
    from vllm_server import Server

    server = Server(
        twins[family]["fp8"],
        tmp_path / "log",
        "--enforce-eager",
        env={"MATE_PLUGIN_STRICT": "1"},
        python=str(VLLM_PYTHON),
    )
    try:
        server.wait()
        vllm = server.ask_all(prompts(), CLIENTS)
    finally:
        server.stop()
    lines, gaps, mean = divergences(vllm, serve(family).answers, prompts())
    print(f"\n{family}, mean logprob difference to vLLM {mean:.4f}", *lines, sep="\n  ")
    assert all(gap <= NEAR_TIE for gap in gaps), lines
    assert mean < NEAR[family]


def test_tokens_are_those_of_sglangs_own_path(serve, twins, tmp_path):
    """Stock SGLang with a stand-in for ``sgl_kernel``, of which there is no CPU build."""
    ours = serve(QWEN, "--attention-backend", "torch_native")
    stock = own_path(twins, tmp_path, {"SGLANG_PLUGINS": "none"})
    lines, gaps, mean = divergences(stock.answers, ours.answers, prompts())
    print(f"\nmean logprob difference to SGLang's own path {mean:.4f}", *lines, sep="\n  ")
    assert all(gap <= NEAR_TIE for gap in gaps), lines
    assert mean < NEAR[QWEN]
    switched_off = own_path(twins, tmp_path, {"MATE_PLUGIN_ENABLED": "0"})
    assert [one.tokens for one in switched_off.answers] == [one.tokens for one in stock.answers]
    assert [one.top for one in switched_off.answers] == [one.top for one in stock.answers]
    assert "mate-plugin: off (enabled is false)" in switched_off.log
    assert not switched_off.reports
    assert "mate-plugin" not in stock.log


def own_path(twins, root: Path, env: dict[str, str]) -> Run:
    """Qwen in bf16 on SGLang's own CPU platform."""
    work = root / "-".join(env)
    work.mkdir()
    variables = {
        "SGLANG_PLATFORM": "",
        "SGLANG_USE_CPU_ENGINE": "1",
        "PYTHONPATH": str(Path(__file__).parent / "stock"),
        "MATE_PLUGIN_REPORT": str(work / "reports"),
    }
    options = ("--attention-backend", "torch_native")
    server = SglangServer(twins[QWEN]["bf16"], work / "log", *options, env=variables | env)
    try:
        server.wait()
        answers = server.ask_all(prompts(), CLIENTS)
        return Run(answers, [], [], "", {}, read_reports(work / "reports"), server.text())
    finally:
        server.stop()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_call_was_ours_in_the_scheduler(serve, twins, family):
    run = serve(family)
    config = json.loads((twins[family][QUANT[family]] / "config.json").read_text())
    (worker,) = [report for report in run.reports if report["layers"]]
    assert "sglang::scheduler" in run.titles[worker["pid"]]
    counts = {(one["kind"], one["shape"]): one for one in worker["layers"]}
    layers = config["num_hidden_layers"]
    sparse, deepseek = family == SPARSE, family != QWEN
    experts = layers - config.get("first_k_dense_replace", 0)
    kinds = {kind for kind, _ in counts}
    assert kinds == {"moe"} | ({"linear", "sparse_mla"} if deepseek else {"attention"}) | (
        {"indexer"} if sparse else set()
    )
    # Every layer ran in every forward pass.
    (moe,) = [one for one in counts.values() if one["kind"] == "moe"]
    passes, rest = divmod(moe["calls"], moe["built"])
    assert (moe["built"], rest) == (experts, 0)
    assert passes > NEW_TOKENS
    for (kind, shape), one in counts.items():
        # MLA absorbs kv_b_proj, whose method never runs; attention is one backend for all layers.
        if kind == "linear" and one["calls"] == 0:
            rows = config["num_attention_heads"] * (
                config["qk_nope_head_dim"] + config["v_head_dim"]
            )
            assert shape == f"{rows}x{config['kv_lora_rank']}"
        elif kind == "sparse_mla":
            assert one["calls"] == layers * passes
        else:
            assert one["calls"] == one["built"] * passes, (kind, shape)
    kernels = {one["op"]: one["calls"] for one in worker["counters"]}
    assert kernels["fused_experts"] == moe["calls"]
    # MLA has one head of keys.
    kv_heads = 1 if deepseek else config["num_key_value_heads"]
    assert kernels["sparse_mla"] == layers * passes * kv_heads
    if sparse:
        # Prompts are scored within the budget, single tokens through SGLang's own selection.
        paged, ragged = kernels["paged_mqa_logits"], kernels["index_topk"]
        assert paged == kernels["top_k"]
        assert paged + ragged == kernels["quant_and_write_k"] == layers * passes
        assert min(paged, ragged) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_each_process_says_once_what_it_installed(serve, family):
    run = serve(family)
    said = [line for line in run.log.splitlines() if "mate-plugin: sglang.moe installed" in line]
    assert len(said) == len(run.reports) >= 2
    off = {"sglang.deep_gemm", "sglang.moe_deep_gemm", "sglang.indexer"}
    for report in run.reports:
        assert {hook["name"] for hook in report["installed"] if not hook["installed"]} <= off


BROKEN = """
import sglang.srt.layers.moe.utils as utils
del utils.resolve_moe_runner_backend
"""


def test_a_broken_hook_target_stops_a_strict_server_with_one_line(twins, tmp_path):
    launch = tmp_path / "launch.py"
    launch.write_text(
        BROKEN + "import runpy\nrunpy.run_module('sglang.launch_server', run_name='__main__')\n"
    )
    server = SglangServer(
        twins[QWEN]["bf16"],
        tmp_path / "log",
        env={"MATE_PLUGIN_STRICT": "1"},
        program=(str(launch),),
    )
    try:
        assert server.ended() == 1
    finally:
        server.stop()
    (line,) = [line for line in server.text().splitlines() if "mate-plugin:" in line]
    assert "SGLang 0.5.23 lacks sglang.srt.layers.moe.utils.resolve_moe_runner_backend" in line
    assert line.endswith("strict is set")


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_serve_the_same_tokens(serve, family):
    one, two = serve(family), serve(family, "--tp-size", "2")
    lines, gaps, mean = divergences(one.answers, two.answers, prompts())
    print(f"\n{family}, mean logprob difference to one process {mean:.4f}", *lines, sep="\n  ")
    assert all(gap <= NEAR_TIE for gap in gaps), lines
    assert mean < NEAR[family]
    ranks = [report for report in two.reports if report["layers"]]
    assert sorted(two.titles[rank["pid"]].split()[0] for rank in ranks) == [
        "sglang::scheduler_TP0",
        "sglang::scheduler_TP1",
    ]
    first, second = (
        {(layer["kind"], layer["shape"]): layer["calls"] for layer in rank["layers"]}
        for rank in ranks
    )
    assert first.keys() == second.keys()
    # The snapshots are of different moments.
    assert max(abs(first[key] - second[key]) for key in first) <= 8
    assert sum(first.values()) > 0


def test_layers_that_do_not_split_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "model", DEEPSEEK, size="tiny")
    server = SglangServer(folder, tmp_path / "log", "--tp-size", "2", env=TWO_RANKS)
    try:
        assert server.ended() != 0
    finally:
        server.stop()
    assert "64 is not divisible by weight quantization block_n = 128" in server.text()

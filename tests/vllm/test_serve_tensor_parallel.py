"""FP8 models split over two processes of one server, against the same weights in one process."""

from __future__ import annotations

import functools
import importlib.util
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from engine_server import NEW_TOKENS, Answer, cores_of_each, prompts, read_reports
from judging import NEAR_TIE, divergences
from served_models import (
    HALVES,
    calls,
    expected_layers,
    expected_sparse_layers,
    forward_passes,
    served_config,
    vary_scales,
    write_twins,
)
from test_serve import has_amx
from vllm_server import Server

pytestmark = [
    pytest.mark.served,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

PROCESSES = 2
SPARSE = "deepseek-v3.2"


@dataclass(frozen=True)
class Pair:
    """What one process of a checkpoint answered, and what several did, counted and selected."""

    folder: Path
    one: list[Answer]
    split: list[Answer]
    reports: list[dict]
    selections: Path


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """A function that serves a family both ways once, and keeps what came of it."""

    @functools.cache
    def run(family: str) -> Pair:
        root = tmp_path_factory.mktemp(family)
        folder = write_twins(root, family, HALVES[family])["fp8"]
        vary_scales(folder)
        selections = root / "selections"
        env = {"VLLM_CPU_OMP_THREADS_BIND": cores_of_each(PROCESSES), "MATE_PLUGIN_STRICT": "1"}
        env["MATE_PLUGIN_DUMP_SELECTIONS"] = str(selections)
        with ExitStack() as stack:
            # Both start at once: for the most part each imports, on one core.
            one = start(stack, folder, root / "one", {"MATE_PLUGIN_STRICT": "1"})
            options = ("--tensor-parallel-size", str(PROCESSES))
            split = start(stack, folder, root / "split", env, *options)
            answers = (asked(one), asked(split))
            return Pair(folder, *answers, read_reports(root / "split" / "reports"), selections)

    return run


def start(stack: ExitStack, model: Path, home: Path, env: dict[str, str], *options: str) -> Server:
    """A server that ends with ``stack``; ``home`` is for its log and its reports."""
    home.mkdir()
    env["MATE_PLUGIN_REPORT"] = str(home / "reports")
    server = Server(model, home / "log", "--enforce-eager", *options, env=env)
    stack.callback(server.stop)
    return server


def asked(server: Server) -> list[Answer]:
    """The answers of a server, once it is ready."""
    server.wait()
    begin = time.monotonic()
    answers = server.ask_all(prompts(), len(prompts()))
    seconds = time.monotonic() - begin
    name = server.log.parent.name
    print(f"\n{name}: waited {server.started_s:.0f} s, answered in {seconds:.0f} s")
    return answers


@pytest.mark.parametrize("family", HALVES)
def test_two_processes_give_the_tokens_of_one(serve, family):
    pair = serve(family)
    lines, gaps, mean = divergences(pair.one, pair.split, prompts())
    print(f"\n{family}, mean logprob difference {mean:.4f}", *lines, sep="\n  ")
    assert all(gap <= NEAR_TIE for gap in gaps), lines
    # The scales of the other process's blocks in one kind of weight move it by 0.07 and more.
    assert mean < 0.02


@pytest.mark.skipif(has_amx, reason="vLLM has kernels of its own on this machine")
@pytest.mark.parametrize("family", HALVES)
def test_each_process_ran_its_share_of_every_layer(serve, family):
    pair = serve(family)
    workers = [report for report in pair.reports if report["layers"]]
    assert len({worker["pid"] for worker in workers}) == PROCESSES
    config = served_config(pair.folder, PROCESSES)
    if family == SPARSE:
        expected = expected_sparse_layers(config, config["index_topk"])
    else:
        expected = expected_layers(config)
    for worker in workers:
        counts = {(one["kind"], one["shape"]): one for one in worker["layers"]}
        # kv_b_proj is built, and never runs, where tokens are selected.
        ran = {key: one["built"] for key, one in counts.items() if one["calls"]}
        assert ran == expected
        passes = forward_passes(counts, config)
        assert passes > NEW_TOKENS
        kernels = {one["op"]: one["calls"] for one in worker["counters"]}
        assert kernels["fused_experts"] == calls(counts, "moe")
        assert kernels["batched_gemm"] == calls(counts, "linear")
        halves = passes * config["num_hidden_layers"] if family == SPARSE else 0
        assert kernels.get("index_topk", 0) == kernels.get("sparse_mla", 0) == halves


@pytest.mark.parametrize("family", [SPARSE])
def test_both_processes_select_the_same_tokens(serve, family):
    """Each scores by itself; other tokens in one of them would mix two attentions."""
    pair = serve(family)
    steps: dict[str, list[dict]] = {}
    for path in sorted(pair.selections.glob("*.pt")):
        steps.setdefault(path.stem.split("-")[0], []).append(torch.load(path))
    assert len(steps) == PROCESSES
    first, *others = steps.values()
    topk = served_config(pair.folder)["index_topk"]
    longest = max(int(step["seq_lens"].max()) for step in first)
    assert longest > 4 * topk
    for other in others:
        assert len(other) == len(first)
        for a, b in zip(first, other, strict=True):
            assert a["layer"] == b["layer"]
            for name in ("query_start_loc", "seq_lens", "indices"):
                assert torch.equal(a[name], b[name]), (a["layer"], name)
    rows = sum(len(step["indices"]) for step in first)
    print(f"\n{len(first)} calls, {rows} rows: the same tokens in {PROCESSES} processes")

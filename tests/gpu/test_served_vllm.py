"""FP8 models served by vLLM on a GPU, experts and linear layers on our kernels.

An installation may need more than the defaults: MATE_TEST_SERVE_ARGS has options for the server,
which gets the environment of the tests too; MATE_TEST_SERVE_LOGS names a folder for its logs.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from forked import needs_vllm
from gpu_contract import require_gpu

from mate_plugin.kernels import select

require_gpu()
TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "serving"), str(TESTS / "vllm")]

from engine_server import NEW_TOKENS, Answer, prompts, read_reports  # noqa: E402
from judging import judge  # noqa: E402
from served_models import (  # noqa: E402
    calls,
    expected_layers,
    forward_passes,
    kv_b_shape,
    served_config,
    write_twins,
)
from torch_model import Model  # noqa: E402
from torch_ops import BLOCK  # noqa: E402
from vllm_server import Server  # noqa: E402

pytestmark = needs_vllm

FAMILIES = ("qwen3-moe", "deepseek-v3")
MODES = {"eager": ("--enforce-eager",), "compiled": ()}
# The pytest process may hold memory of the same GPU.
OPTIONS = ("--gpu-memory-utilization", "0.3")
MORE = shlex.split(os.environ.get("MATE_TEST_SERVE_ARGS", ""))
ASKED = {
    "MATE_PLUGIN_CUDA_MOE": "1",
    "MATE_PLUGIN_CUDA_LINEAR": "1",
    "MATE_PLUGIN_STRICT": "1",
}
# As in tests/vllm/test_serve.py: FP8 activations turn a changed last bit into a sixteenth of an
# element.
NEAR_TIE_FP8 = 0.5
# A router's tie that falls the other way asks another expert.
FAR_OF_100 = 1
MEAN_DIFFERENCE = 0.12
GEMMS = ("batched_gemm", "ragged_m_gemm")


@dataclass(frozen=True)
class Run:
    """What one server said and counted."""

    answers: list[Answer]
    chats: list[str]
    reports: list[dict]
    log: str

    def worker(self) -> dict:
        """The report of the process that ran the model."""
        (found,) = [report for report in self.reports if report["layers"]]
        return found


Serve = Callable[[str, str], Run]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return functools.cache(lambda family: write_twins(root, family)["fp8"])


@pytest.fixture(scope="module")
def serve(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """A function that starts the server of a family and mode once, and keeps what it gave."""
    root = Path(os.environ.get("MATE_TEST_SERVE_LOGS") or tmp_path_factory.mktemp("servers"))

    @functools.cache
    def run(family: str, mode: str) -> Run:
        counts = tmp_path_factory.mktemp("counts")
        server = Server(
            checkpoints(family),
            root / f"serve-{family}-{mode}.log",
            *MODES[mode],
            *OPTIONS,
            *MORE,
            env=ASKED | {"MATE_PLUGIN_REPORT": str(counts)},
        )
        try:
            server.wait()
            begin = time.monotonic()
            chats = [server.chat("Tell me something.") for _ in range(2)]
            answers = server.ask_all(prompts(), 4)
            asked = time.monotonic() - begin
            reports = read_reports(counts)
        finally:
            server.stop()
        print(f"\n{family}, {mode}: ready after {server.started_s:.0f} s, asked for {asked:.1f} s")
        return Run(answers, chats, reports, server.text())

    return run


@pytest.fixture(autouse=True)
def _models_on_the_cpu(_default_device: None) -> Iterator[None]:
    """The models that judge are read and run on the CPU."""
    with torch.device("cpu"):
        yield


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_a_torch_model_that_rounds_alike(
    serve: Serve, checkpoints: Callable[[str], Path], family: str, mode: str
) -> None:
    """Each token is judged after the tokens before it, as the server chose them."""
    run = serve(family, mode)
    assert all(run.chats), run.chats
    assert all(len(answer.tokens) == NEW_TOKENS for answer in run.answers)
    gaps, mean = judge(Model(checkpoints(family), fp8=True), run.answers)
    ties = sorted(gap for gap in gaps if gap > 0)
    print(
        f"\n{family}, {mode}: {run.chats[0]!r}; {len(gaps) - len(ties)} of {len(gaps)} tokens are"
        f" the torch model's own, gaps of the others {[round(gap, 4) for gap in ties]}; mean"
        f" logprob difference {mean:.4f}"
    )
    assert sum(gap > NEAR_TIE_FP8 for gap in ties) <= FAR_OF_100 * len(gaps) / 100
    assert mean < MEAN_DIFFERENCE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_fp8_layer_is_ours_and_none_fell_back(
    serve: Serve, checkpoints: Callable[[str], Path], family: str, mode: str
) -> None:
    """As many layers of each shape as the model has; GEMMs by the kernels of this GPU alone."""
    config = served_config(checkpoints(family))
    worker = serve(family, mode).worker()
    counts = {(one["kind"], one["shape"]): one for one in worker["layers"]}
    assert {key: one["built"] for key, one in counts.items()} == expected_layers(config)
    # GEMMs alone have kernels of Hopper's own.
    best = select.choose("batched_gemm", "cuda").impl
    impls = {row["impl"] for row in worker["counters"] if row["op"] in GEMMS and row["calls"]}
    assert impls == {best}, worker["counters"]
    assert all(str(best) in one["how"] for key, one in counts.items() if key[0] == "moe"), counts
    if mode != "eager":
        # Replays of a graph go past the counters.
        return
    assert forward_passes(counts, config) > NEW_TOKENS
    if kv_b := counts.get(("linear", kv_b_shape(config))):
        assert kv_b["calls"] > 0
    kernels = {row["op"]: row["calls"] for row in worker["counters"] if row["impl"] == best}
    # Gate and up that end in partial blocks are two products, and else one.
    products = 3 if config["moe_intermediate_size"] % BLOCK else 2
    assert kernels["ragged_m_gemm"] == products * calls(counts, "moe")
    assert kernels["batched_gemm"] == calls(counts, "linear")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_log_says_whose_layers_run(serve: Serve, family: str) -> None:
    log = serve(family, "eager").log
    assert "mate-plugin: vllm.moe installed" in log
    assert "vllm.linear installed" in log
    assert "FP8 MoE layers run on mate-plugin" in log
    assert "MateFp8BlockScaledMMKernel" in log

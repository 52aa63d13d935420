"""DeepSeek-V3.2 served by vLLM through the plugin: tokens and selections against plain torch, and
against the dense model in stock vLLM where nothing is left out."""

from __future__ import annotations

import functools
import importlib.util
import json
import time
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from engine_server import NEW_TOKENS, Answer, prompts, read_reports
from judging import NEAR_TIE, divergences
from served_models import expected_sparse_layers, kv_b_shape, served_config, write_twins
from test_serve import has_amx
from torch_indexer import Selection, dispute, mask_of
from torch_model import Model
from vllm_server import Server

pytestmark = [
    pytest.mark.served,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

FAMILY = "deepseek-v3.2"
TOPK, MAX_LENGTH = 64, 4608
# Around index_topk, the blocks of 64 and the chunks of 1024.
LENGTHS = (10, 33, 63, 64, 65, 100, 129, 256, 400, 700, 1023, 1025, 1500, 2048, 3000, 4000)
ALONE = (400, 1500)
SERVED = (
    *("--max-model-len", str(MAX_LENGTH), "--max-num-seqs", "16"),
    *("--max-num-batched-tokens", "1024"),
)
ALL = json.dumps({"index_topk": MAX_LENGTH})
PREFIX, NO_PREFIX = "--enable-prefix-caching", "--no-enable-prefix-caching"
MODES: dict[str, tuple[str, ...]] = {
    "eager": ("--enforce-eager", NO_PREFIX),
    "eager, prefix caching": ("--enforce-eager", PREFIX),
    "compiled": (NO_PREFIX,),
    "compiled, prefix caching": (PREFIX,),
}
# bf16 noise moves keys across the edges of e4m3 codes: as much as scores differ at the threshold.
TIE = 0.3  # of the standard deviation of a row's scores
SWAPPED = 0.03  # of all selected tokens
WAYS = {"sparse": (), "all": ("--hf-overrides", ALL)}
# With all tokens selected, each form of execution and of caching once.
SERVED_MODES = {"sparse": tuple(MODES), "all": ("eager, prefix caching", "compiled")}
PAIRS = [(way, mode) for way, modes in SERVED_MODES.items() for mode in modes]


@dataclass(frozen=True)
class Run:
    """What one server said and counted."""

    answers: list[Answer]
    again: list[Answer]
    alone: list[Answer]
    cached_tokens: float
    reports: list[dict]
    log: str


def questions(lengths: Iterable[int] = LENGTHS) -> list[list[int]]:
    return prompts(lengths, seed=11)


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sparse")
    return write_twins(root, FAMILY, {"max_position_embeddings": MAX_LENGTH})


@pytest.fixture(scope="module")
def chosen(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("selections")


@pytest.fixture(scope="module")
def serve(twins, chosen, tmp_path_factory):
    """A function that starts the server of a way and mode once, and keeps what it gave."""
    root = tmp_path_factory.mktemp("servers")

    @functools.cache
    def run(way: str, mode: str) -> Run:
        name = f"{way}-{mode}".replace(", ", "-").replace(" ", "-")
        counts = root / f"{name}-counts"
        if way == "stock":
            folder, options = twins["bf16"], ("--enforce-eager", NO_PREFIX)
            env = {"VLLM_PLUGINS": ""}
        else:
            folder, options = twins["fp8"], (*WAYS[way], *MODES[mode])
            env = {"MATE_PLUGIN_CONFIG": "deepseek_v32", "MATE_PLUGIN_REPORT": str(counts)}
        dumps = way == "sparse" and mode == "eager"
        if dumps:
            env["MATE_PLUGIN_DUMP_SELECTIONS"] = str(chosen / "all")
        server = Server(folder, root / f"{name}.log", *SERVED, *options, env=env)
        try:
            server.wait()
            begin = time.monotonic()
            alone = [server.ask(prompt) for prompt in questions(ALONE)] if dumps else []
            if dumps:
                (chosen / "all").rename(chosen / "alone")
            answers = server.ask_all(questions(), len(LENGTHS))
            again = server.ask_all(questions()[::4], len(LENGTHS)) if PREFIX in options else []
            asked = time.monotonic() - begin
            cached = metric(server, "vllm:prefix_cache_hits_total")
            reports = read_reports(counts)
        finally:
            server.stop()
        print(f"\n{name}: ready after {server.started_s:.0f} s, answered in {asked:.0f} s")
        return Run(answers, again, alone, cached, reports, server.text())

    return run


def metric(server: Server, name: str) -> float:
    """Sum of a Prometheus counter of the server."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    values = [float(line.split()[-1]) for line in lines if line.startswith(name)]
    assert values, f"no metric {name}"
    return sum(values)


@pytest.fixture(scope="module")
def logprobs(twins):
    """A function that gives the torch model's logprobs of each token of an answer, with the
    selection of the checkpoint or with none."""
    models = {topk: Model(twins["fp8"], fp8=False) for topk in (TOPK, MAX_LENGTH)}
    for topk, model in models.items():
        assert model.config["index_topk"] == TOPK
        model.config["index_topk"] = topk

    @functools.cache
    def of(prompt: tuple[int, ...], ids: tuple[int, ...], topk: int = TOPK) -> torch.Tensor:
        tokens = [*prompt, *ids[:-1]]
        return models[topk].logits(tokens, len(prompt))[len(prompt) - 1 :].log_softmax(1)

    return of


def token_ids(answer: Answer) -> tuple[int, ...]:
    return tuple(int(token.split(":")[1]) for token in answer.tokens)


def differences(own: torch.Tensor, answer: Answer) -> list[float]:
    """How far the server's logprobs of its best candidates are from ``own``, token by token."""
    found = []
    for row, top in zip(own, answer.top, strict=True):
        candidates = [int(token.split(":")[1]) for token in top]
        found += (torch.tensor(list(top.values())) - row[candidates]).abs().tolist()
    return found


@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_those_of_a_torch_model_that_selects_by_itself(serve, logprobs, mode):
    """Each token is judged after the tokens before it, as the server chose them."""
    run = serve("sparse", mode)
    gaps: dict[int, list[float]] = {}
    found = []
    asked = [*questions(), *questions()[::4][: len(run.again)]]
    for prompt, answer in zip(asked, [*run.answers, *run.again], strict=True):
        ids = token_ids(answer)
        assert len(ids) == NEW_TOKENS
        own = logprobs(tuple(prompt), ids)
        behind = own.amax(1) - own.gather(1, torch.tensor(ids)[:, None])[:, 0]
        gaps.setdefault(len(prompt), []).extend(behind.tolist())
        found += differences(own, answer)
    lines = [
        f"prompt of {length}: {sum(gap == 0 for gap in some)} of {len(some)} tokens are the torch"
        f" model's own, gaps of the others {[round(gap, 4) for gap in some if gap > 0]}"
        for length, some in gaps.items()
    ]
    mean = sum(found) / len(found)
    print(f"\n{mode}, mean logprob difference {mean:.4f}", *lines, sep="\n  ")
    assert all(gap <= NEAR_TIE for some in gaps.values() for gap in some), lines
    assert mean < 0.05


def test_selecting_matters(serve, logprobs):
    """The server is where the selecting model is, not where one that reads all tokens is."""
    near, far = [], []
    for prompt, answer in zip(questions(), serve("sparse", "eager").answers, strict=True):
        if len(prompt) > 4 * TOPK:
            asked = (tuple(prompt), token_ids(answer))
            near += differences(logprobs(*asked), answer)
            far += differences(logprobs(*asked, MAX_LENGTH), answer)
    means = [sum(some) / len(some) for some in (near, far)]
    text = "to the selecting model {:.4f}, to one that reads all tokens {:.4f}".format(*means)
    print(f"\nmean logprob difference {text}")
    assert means[0] < means[1] / 2


@pytest.mark.parametrize("mode", SERVED_MODES["all"])
def test_all_tokens_selected_is_the_dense_model_in_stock_vllm(serve, mode):
    stock, ours = serve("stock", "eager").answers, serve("all", mode).answers
    lines, gaps, mean = divergences(stock, ours, questions())
    print(f"\n{mode}, mean logprob difference {mean:.4f}", *lines, sep="\n  ")
    assert all(gap <= NEAR_TIE for gap in gaps), lines
    assert mean < 0.05


@pytest.mark.parametrize("way", WAYS)
def test_prefixes_are_taken_from_the_cache_where_that_is_on(serve, way):
    for mode in SERVED_MODES[way]:
        run = serve(way, mode)
        if "prefix" in mode:
            # Whole blocks of the prompts that were asked twice.
            assert run.cached_tokens >= sum(n // 64 * 64 - 64 for n in LENGTHS[::4])
        else:
            assert run.cached_tokens == 0


def selections_alone(folder: Path) -> dict[str, list[torch.Tensor]]:
    """Per layer and request, the selected positions of each of its tokens, from the dump."""
    found: dict[str, list[list[torch.Tensor]]] = {}
    for path in sorted(folder.glob("*.pt")):
        call = torch.load(path)
        assert len(call["seq_lens"]) == 1
        rows = call["indices"][: int(call["query_start_loc"][-1])]
        requests = found.setdefault(call["layer"], [])
        if int(call["seq_lens"][0]) == len(rows):
            requests.append([])
        requests[-1].append(rows)
    return {layer: [torch.cat(parts) for parts in some] for layer, some in found.items()}


def test_selected_tokens_are_the_torch_models_up_to_ties_at_the_threshold(serve, twins, chosen):
    """Attention follows the server's selection, so that each layer's own scores are compared."""
    answers = serve("sparse", "eager").alone
    model = Model(twins["fp8"], fp8=False)
    layers = selections_alone(chosen / "alone")
    assert len(layers) == model.config["num_hidden_layers"]
    names = sorted(layers)
    for request, (prompt, answer) in enumerate(zip(questions(ALONE), answers, strict=True)):
        tokens = [*prompt, *token_ids(answer)[:-1]]
        forced = [layers[name][request] for name in names]
        model.logits(tokens, len(prompt), forced=forced)
        for name, indices, own in zip(names, forced, model.selections, strict=True):
            assert indices.shape == (len(tokens), TOPK)
            compare_selection(name, indices, own)


def compare_selection(name: str, indices: torch.Tensor, own: Selection) -> None:
    """Equal sets in each row, or scores so close at the threshold that rounding decides."""
    length = len(indices)
    counts = (indices >= 0).sum(1)
    assert torch.equal(counts, torch.arange(1, length + 1).clamp(max=TOPK))
    theirs = mask_of(indices, length)
    assert torch.equal(theirs.sum(1), counts), "a token twice"
    swapped = int((theirs & ~own.chosen).sum())
    disputed = dispute(own, indices)
    seen = own.scores[-1, :length]
    worst, spread = float(disputed.max()), float(seen.std())
    print(
        f"\n{name}: {length} rows, {int(counts.sum())} tokens, {swapped} others than the torch"
        f" model's, their scores at most {worst:.4f} from the threshold (standard deviation of a"
        f" row: {spread:.2f})"
    )
    assert worst <= TIE * spread
    assert swapped <= SWAPPED * counts.sum()


@pytest.mark.parametrize(("way", "mode"), PAIRS)
def test_every_call_was_ours(serve, twins, way, mode):
    """Indexer and attention of each layer ran in every forward pass, within the budget."""
    run = serve(way, mode)
    (worker,) = [report for report in run.reports if report["layers"]]
    counts = {(one["kind"], one["shape"]): one for one in worker["layers"]}
    config = served_config(twins["fp8"])
    layers = config["num_hidden_layers"]
    expected = expected_sparse_layers(config, MAX_LENGTH if way == "all" else TOPK)
    if has_amx:
        # vLLM has linear layers of its own on this machine.
        expected = {key: built for key, built in expected.items() if key[0] != "linear"}
    else:
        # Attention to selected tokens has kv_b_proj's weight in another form.
        assert counts.pop(("linear", kv_b_shape(config)))["calls"] == 0
    assert {key: one["built"] for key, one in counts.items()} == expected
    (indexer,) = [one for (kind, _), one in counts.items() if kind == "indexer"]
    (attention,) = [one for (kind, _), one in counts.items() if kind == "sparse_mla"]
    assert indexer["calls"] == attention["calls"] > layers * NEW_TOKENS
    kernels = {one["op"]: one["calls"] for one in worker["counters"]}
    assert kernels["index_topk"] == indexer["calls"]
    assert kernels["sparse_mla"] == attention["calls"]
    assert 0 < worker["logits_peak_bytes"] <= 256 << 20 or way == "all"
    assert "vllm.sparse installed (FP8 indexer within 256 MiB, sparse MLA" in run.log


def test_switched_off_vllm_refuses_as_before(twins, tmp_path):
    env = {"MATE_PLUGIN_VLLM_SPARSE": "0"}
    server = Server(twins["fp8"], tmp_path / "log", "--enforce-eager", env=env)
    try:
        assert server.ended() != 0
    finally:
        server.stop()
    assert "Sparse Attention is not supported on CPU" in server.text()

"""The torch model that judges a served DeepSeek-V3.2 is itself what it claims to be."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "vllm"), str(HERE / "serving")]

import torch_indexer  # noqa: E402
import torch_ops  # noqa: E402
from served_models import write_twins  # noqa: E402
from torch_indexer import Operands, Selection, choose, dispute, mask_of, score  # noqa: E402
from torch_model import Model  # noqa: E402

TOPK = 64
LENGTH = 300
TOKENS = torch.randint(3, 250, (LENGTH,), generator=torch.Generator().manual_seed(7)).tolist()


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_twins(tmp_path_factory.mktemp("twins"), "deepseek-v3.2", {"index_topk": TOPK})


@pytest.fixture
def model(twins: dict[str, Path]) -> Model:
    return Model(twins["fp8"], fp8=False)


def positions(selection: Selection) -> torch.Tensor:
    """``[T, TOPK]`` positions that were chosen, -1 behind them."""
    scores, found = selection.scores.topk(TOPK, 1)
    return found.masked_fill(scores == -math.inf, -1)


def test_each_token_reads_the_best_of_those_before_it(model: Model) -> None:
    model.logits(TOKENS, LENGTH)
    assert len(model.selections) == 3
    earlier = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    for selection in model.selections:
        scores, chosen = selection.scores, selection.chosen
        assert torch.equal(scores > -math.inf, earlier)
        assert chosen.sum(1).tolist() == [min(row + 1, TOPK) for row in range(LENGTH)]
        worst = scores.masked_fill(~chosen, math.inf).amin(1)
        best_left = scores.masked_fill(chosen, -math.inf).amax(1)
        assert (worst >= best_left).all()


def test_attention_reads_nothing_that_was_not_chosen() -> None:
    chance = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(LENGTH, heads, 32, generator=chance) for heads in (4, 1, 1))
    scores = torch.randn(LENGTH, LENGTH, generator=chance)
    scores.masked_fill_(torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1), -math.inf)
    chosen = choose(scores, TOPK)
    out = torch_ops.attend(q, k, v, 0.2, chosen)
    row = LENGTH - 1
    k[~chosen[row]], v[~chosen[row]] = 5.0, 1000.0
    assert torch.equal(torch_ops.attend(q, k, v, 0.2, chosen)[row], out[row])
    few = chosen[row].nonzero()[:, 0]
    weights = (q[row] @ k[few, 0].T * 0.2).softmax(1)
    torch.testing.assert_close(out[row].float(), (weights @ v[few, 0]).flatten(), atol=4e-3, rtol=0)


def test_forced_selection_takes_the_place_of_the_own(model: Model) -> None:
    logits = model.logits(TOKENS, LENGTH)
    own = [positions(selection) for selection in model.selections]
    assert torch.equal(model.logits(TOKENS, LENGTH, own), logits)
    recent = torch.arange(LENGTH)[:, None] - torch.arange(TOPK)
    forced = model.logits(TOKENS, LENGTH, [recent.clamp(min=-1)] * 3)
    assert torch.equal(forced[:TOPK], logits[:TOPK])
    assert not torch.equal(forced[TOPK:], logits[TOPK:])
    with pytest.raises(AssertionError, match="reads one that comes after it"):
        model.logits(TOKENS, LENGTH, [recent.clamp(min=1)] * 3)


def test_long_enough_choices_are_the_dense_twin(twins: dict[str, Path], model: Model) -> None:
    twin = Model(twins["bf16"])
    # Later tokens have the form of attention that V3.2 has for all of them.
    dense = twin.logits(TOKENS, 0)
    assert twin.selections == []
    sparse = model.logits(TOKENS, LENGTH)
    assert torch.equal(sparse[:TOPK], dense[:TOPK])
    assert (sparse[TOPK:] - dense[TOPK:]).abs().mean() > 0.03
    model.config["index_topk"] = LENGTH
    assert torch.equal(model.logits(TOKENS, LENGTH), dense)
    # The prompt's own form of attention rounds elsewhere and is otherwise the same.
    assert (twin.logits(TOKENS, LENGTH) - dense).abs().mean() < 0.01


def test_scores_are_the_formula() -> None:
    chance = torch.Generator().manual_seed(2)
    q, k = (torch.randn(s, generator=chance).to(torch_ops.FP8) for s in ((5, 3, 128), (5, 128)))
    weights, scale = torch.randn(5, 3, generator=chance), torch.tensor([0.5, 1, 2, 4, 0.25])
    found = score(Operands(q, weights, k, scale))
    for i in range(5):
        for j in range(5):
            dots = [float(q[i, h].double() @ k[j].double()) for h in range(3)]
            each = [max(d, 0.0) * float(w) for d, w in zip(dots, weights[i], strict=True)]
            expected = float(scale[j]) * sum(each) if j <= i else -math.inf
            assert found[i, j] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fault", ["rope in pairs", "no rope", "lost bias"])
def test_faults_of_an_indexer_change_what_is_chosen(
    model: Model, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    logits = model.logits(TOKENS, LENGTH)
    right = model.selections[0]
    if fault == "lost bias":
        name = "model.layers.0.self_attn.indexer.k_norm.bias"
        model.weight[name] = torch.zeros(128)
    else:
        turn = {"rope in pairs": torch_ops.rotate_pairs_16bit, "no rope": lambda x, *_: x}[fault]
        monkeypatch.setattr(torch_indexer, "rotate_halves_16bit", turn)
    wrong = model.logits(TOKENS, LENGTH)
    moved = (model.selections[0].chosen & ~right.chosen)[TOPK:].sum() / right.chosen[TOPK:].sum()
    assert moved > 0.05
    assert (wrong - logits)[TOPK:].abs().mean() > 0.01
    assert dispute(right, positions(model.selections[0])).amax() > 0.1


def test_dispute_measures_what_one_side_chose_alone() -> None:
    scores = torch.tensor([[1.0, -math.inf, -math.inf], [1, 2, -math.inf], [3, 5, 2.5]])
    selection = Selection(scores, choose(scores, 2))
    same = torch.tensor([[0, -1], [1, 0], [0, 1]])
    assert torch.equal(mask_of(same, 3), selection.chosen)
    assert dispute(selection, same).tolist() == [0, 0, 0]
    # Row 2: position 2 came in 0.5 below the last one chosen; position 1 was left out 2 above it.
    assert dispute(selection, torch.tensor([[0, -1], [1, 0], [0, 2]])).tolist() == [0, 0, 2]
    with pytest.raises(AssertionError, match="rows of other lengths"):
        dispute(selection, torch.tensor([[0, -1], [1, -1], [0, 2]]))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_rotation_norm_and_folding_are_those_of_vllm(twins: dict[str, Path]) -> None:
    """In a process of its own, since vLLM patches what it imports."""
    command = [sys.executable, str(HERE / "vllm" / "vllm_indexer.py"), str(twins["fp8"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-3:] == ["q", "k", "weights"]

"""What test_musa.py runs in processes where SGLang finds the simulated device."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import deep_gemm
import musa_dsa
import musa_vendor
import pytest
import torch
import torch_musa
from musa_dsa import HEADS, LATENT, ROTARY, TOPK, Dsa

SCHEDULE = "get_paged_mqa_logits_metadata"
SEAM = "sglang.indexer"
SCALING = 0.1


def load() -> Any:
    """Load the plugin as SGLang does, and return what became of the indexer's hook."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    from mate_plugin import report
    from mate_plugin.plugin import register_sglang

    register_sglang()
    HookRegistry.apply_hooks()
    return {hook.name: hook for hook in report.hooks()}[SEAM]


def calls(name: str) -> list[dict[str, Any]]:
    """Arguments of the calls of one function of deep_gemm."""
    return [arguments for found, arguments in deep_gemm.calls if found == name]


def without_the_seam() -> None:
    """SGLang itself has nothing for this device."""
    dsa = Dsa()
    batch = dsa.batch("EXTEND", {0: 20})
    dsa.start(batch)
    with pytest.raises(NotImplementedError, match="Indexer has no native"):
        dsa.select(batch)


def prompts_and_tokens() -> None:
    """Prompts together, the rest of one behind a prefix, single tokens of both."""
    hook = load()
    assert hook.installed, hook
    dsa = Dsa()
    dsa.step("EXTEND", {0: 100, 1: 7})
    assert not calls(SCHEDULE)
    (call,) = calls("fp8_mqa_logits")
    assert call["clean_logits"] is False
    dsa.step("EXTEND", {1: 60})
    for _ in range(3):
        selected = dsa.step("DECODE", {1: 1, 0: 1})
        (call,) = calls("fp8_paged_mqa_logits")
        assert call["q"].shape[:3] == (2, 1, HEADS)
    assert len(set(selected[0].tolist())) == TOPK


def keys_are_rotated() -> None:
    """The cache holds the keys times the Hadamard matrix: of another its owner could not read."""
    load()
    dsa = Dsa()
    dsa.step("EXTEND", {0: 70})
    dsa.step("DECODE", {0: 1})
    true, (codes, scales) = dsa.keys(0), dsa.stored(0)
    # Half a step of e4m3 at a power-of-two scale, and bfloat16 before it.
    largest = true.abs().amax(dim=1, keepdim=True)
    bound = true.abs() / 16 + largest / 128
    assert bool(((codes * scales[:, None] - true).abs() <= bound).all())


def one_schedule_per_step() -> None:
    """Layers share the schedule of a step; in a graph each makes its own."""
    load()
    from sglang.srt.layers.attention.dsa import dsa_indexer

    dsa = Dsa(layers=3)
    first = dsa.batch("EXTEND", {0: 100, 1: 40})
    dsa.start(first)
    for layer in range(3):
        dsa.select(first, layer)
    for captured, schedules in ((False, 1), (False, 1), (True, 3), (False, 1)):
        dsa_indexer.get_is_capture_mode = lambda captured=captured: captured
        batch = dsa.batch("DECODE", {0: 1, 1: 1})
        dsa.start(batch)
        every = []
        for layer in range(3):
            deep_gemm.calls.clear()
            dsa.check(batch, dsa.select(batch, layer), layer)
            every += calls(SCHEDULE)
        assert len(every) == schedules
        assert every[0]["num_mps"] == torch_musa.PROPERTIES.multi_processor_count
        kept = dsa.backend.forward_metadata.paged_mqa_schedule_metadata
        assert (kept is None) == captured


def more_requests_than_processors() -> None:
    """SGLang scores as many requests at once as there are processors."""
    load()
    processors = torch_musa.PROPERTIES.multi_processor_count
    requests = processors + 2
    dsa = Dsa(requests=requests)
    dsa.step("EXTEND", {r: 20 + 3 * r for r in range(requests)})
    dsa.step("DECODE", dict.fromkeys(range(requests), 1))
    rows = [call["q"].shape[0] for call in calls("fp8_paged_mqa_logits")]
    assert rows == [processors, 2]


def prompts_in_parts() -> None:
    """SGLang scores a long prompt in as many parts as the memory of the device asks for."""
    load()
    from sglang.srt.layers.attention import mqa_logits_utils

    mqa_logits_utils.MQA_LOGITS_STATIC_SKIP_ELEMS = 0
    torch_musa.PROPERTIES.total_memory = 1 << 16
    Dsa().step("EXTEND", {0: 100, 1: 30})
    assert len(calls("fp8_mqa_logits")) > 1


def drafts() -> None:
    """Several tokens of a request that are to be verified, each with a length of its own."""
    load()
    dsa = Dsa()
    dsa.backend.speculative_num_draft_tokens = 3
    dsa.step("EXTEND", {0: 66, 1: 30})
    dsa.step("TARGET_VERIFY", {0: 3, 1: 3})
    (call,) = calls(SCHEDULE)
    assert call["context_lens"].flatten().tolist() == [67, 68, 69, 31, 32, 33]


def keys_only() -> None:
    """A layer whose selection nobody asks for writes its keys and scores nothing."""
    load()
    dsa = Dsa()
    batch = dsa.batch("EXTEND", {0: 50})
    dsa.start(batch)
    assert dsa.select(batch, return_indices=False) is None
    assert not deep_gemm.calls
    assert bool(dsa.stored(0)[0].any(dim=1).all())
    dsa.step("DECODE", {0: 1})


def idle() -> None:
    """A rank without requests gets rows that select nothing."""
    load()
    dsa = Dsa()
    batch = dsa.batch("DECODE", {0: 1})
    dsa.start(batch)
    batch.forward_mode = type(batch.forward_mode).IDLE
    assert dsa.select(batch).tolist() == [[-1] * TOPK]
    assert not deep_gemm.calls


def slots_for_attention() -> None:
    """The backend hands the selected tokens' slots to TileLang's kernel, here a stand-in."""
    load()
    given = []

    def tilelang_sparse_fwd(
        q: torch.Tensor, kv: torch.Tensor, indices: torch.Tensor, sm_scale: float, d_v: int
    ) -> torch.Tensor:
        assert q.shape[1:] == (HEADS, LATENT + ROTARY)
        assert kv.shape[1:] == (1, LATENT + ROTARY)
        assert sm_scale == SCALING
        given.append(indices.squeeze(1).cpu())
        return q.new_zeros(1, q.shape[0], HEADS, d_v)

    kernel = ModuleType("sglang.kernels.ops.attention.dsa.tilelang_kernel")
    kernel.tilelang_sparse_fwd = tilelang_sparse_fwd
    sys.modules[kernel.__name__] = kernel
    dsa = Dsa()
    for mode, new in (("EXTEND", {0: 30, 1: 90}), ("DECODE", {1: 1, 0: 1})):
        selected = dsa.step(mode, new).cpu()
        requests = [request for request, count in new.items() for _ in range(count)]
        attend(dsa, mode, new, selected.to("musa"))
        slots = dsa.table[torch.tensor(requests)[:, None], selected.clamp(min=0)]
        assert torch.equal(given[-1][:, :TOPK], torch.where(selected < 0, -1, slots))
        assert bool((given[-1][:, TOPK:] == -1).all())


def attend(dsa: Dsa, mode: str, new: dict[int, int], selected: torch.Tensor) -> None:
    """Run the backend's attention over the tokens of the step that was begun."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    counts = list(new.values())
    batch = SimpleNamespace(
        forward_mode=ForwardMode[mode],
        extend_prefix_lens_cpu=[0] * len(new),
        extend_seq_lens_cpu=counts,
    )
    layer = SimpleNamespace(
        layer_id=0,
        is_cross_attention=False,
        tp_q_head_num=HEADS,
        head_dim=LATENT + ROTARY,
        v_head_dim=LATENT,
        scaling=SCALING,
        logit_cap=0.0,
    )
    rows = sum(counts)
    q = torch.zeros(rows, HEADS * LATENT, dtype=torch.bfloat16, device="musa")
    q_rope = torch.zeros(rows, HEADS, ROTARY, dtype=torch.bfloat16, device="musa")
    forward = dsa.backend.forward_decode if mode == "DECODE" else dsa.backend.forward_extend
    out = forward(q, None, None, layer, batch, False, q_rope=q_rope, topk_indices=selected)
    assert out.shape == (rows, HEADS, LATENT)


def our_scores() -> None:
    """The same with our functions in SGLang's slots, as where our kernels serve the device."""
    from mate_plugin.indexer import sglang_scores
    from mate_plugin.kernels import select

    select.choose = lambda op, device, _=None: select.Choice(
        op, str(device), "simulated", "a stand-in"
    )
    for name in (SCHEDULE, "fp8_paged_mqa_logits", "fp8_mqa_logits"):
        setattr(sglang_scores, name, getattr(deep_gemm, name))
    sglang_scores.SLOTS["resolve_paged_mqa_logits_metadata_fn"] = lambda: (
        deep_gemm.get_paged_mqa_logits_metadata
    )
    assert load().installed
    from sglang.srt.layers.attention.dsa import dsa_indexer

    from mate_plugin import report

    assert report.installed(sglang_scores.NAME)
    assert dsa_indexer.resolve_fp8_paged_mqa_logits_fn() is sglang_scores.paged_mqa_logits
    dsa = Dsa()
    dsa.step("EXTEND", {0: 80, 1: 20})
    dsa.step("DECODE", {0: 1, 1: 1})


def the_vendors_scores() -> None:
    """Our functions in SGLang's slots send the scores to the vendor's package."""
    from mate_plugin import report
    from mate_plugin.indexer import sglang_scores

    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, str(musa_vendor.install(Path(folder), "0.2.2")))
        assert load().installed
        hooks = {hook.name: hook for hook in report.hooks()}
        assert hooks[sglang_scores.NAME].installed
        assert hooks[sglang_scores.NAME].reason.endswith("vendor, the vendor's mate 0.2.2")
        musa_dsa.HEADS = 32  # which the vendor's kernels are made for
        dsa = Dsa()
        dsa.step("EXTEND", {0: 80, 1: 20})
        dsa.step("DECODE", {0: 1, 1: 1})
    assert [name for name, _ in deep_gemm.calls] == [SCHEDULE, "fp8_paged_mqa_logits"]
    found = {row["op"]: row["calls"] for row in report.counters() if row["impl"] == "vendor"}
    assert found == {"mqa_logits": 1, "paged_mqa_metadata": 1, "paged_mqa_logits": 1}
    assert not report.refusals("vendor")


def our_experts() -> None:
    """SGLang's MoE runner on our kernels, built for the host, offered by itself where they are."""
    import fake_musa_library  # noqa: F401
    from layer_oracle import moe
    from sglang_moe_cases import FACTOR, INFOS, KINDS, routed, run, runner

    from mate_plugin import report

    load()
    hooks = {hook.name: hook for hook in report.hooks()}
    assert hooks["sglang.moe"].installed, hooks["sglang.moe"].reason
    given = routed()
    for kind, weights in KINDS.items():
        expected = moe(weights, *given, fp8=kind == "fp8") * FACTOR
        on_device = SimpleNamespace(
            **{name: x if x is None else x.to("musa") for name, x in _parameters(weights)}
        )
        for info in INFOS.values():
            found = run(runner(), info(on_device), *(x.to("musa") for x in given))
            assert found.device.type == "musa"
            error = (found.cpu().double() - expected).abs().max()
            assert error <= 2e-2 * expected.abs().max(), float(error)
    served = {row["impl"] for row in report.counters() if row["op"] == "ragged_m_gemm"}
    assert served == {"portable"}


def _parameters(weights: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(weights, name)) for name in ("w13", "w13_scale", "w2", "w2_scale")]


def a_forward_of_its_own() -> None:
    """A later SGLang that serves MUSA itself keeps what it has."""
    from sglang.srt.layers.attention.dsa import dsa_indexer

    def forward_musa(*_: object) -> str:
        return "its own"

    rotate = dsa_indexer.rotate_activation
    dsa_indexer.Indexer.forward_musa = forward_musa
    hook = load()
    assert not hook.installed
    assert "has an Indexer.forward_musa of its own" in hook.reason
    assert dsa_indexer.rotate_activation is rotate
    dsa = Dsa()
    assert dsa.select(dsa.batch("EXTEND", {0: 3})) == "its own"


def a_release_without_a_target() -> None:
    """What the seam needs and does not find is named."""
    from sglang.srt.layers.attention.dsa.dsa_indexer import Indexer

    del Indexer._store_index_k_cache
    hook = load()
    assert not hook.installed
    assert hook.reason.endswith("dsa_indexer.Indexer._store_index_k_cache")
    assert not hasattr(Indexer, "forward_musa")


def other_platforms() -> None:
    """Elsewhere the seam is off, and refused where it is asked for."""
    from mate_plugin.config import settings
    from mate_plugin.layers import sglang_hooks, sglang_release

    for platform in ("cuda", "mate_cpu"):
        sglang_release.platform = lambda platform=platform: platform
        hook = only(sglang_hooks)
        assert hook.reason == "switched off here (sglang.indexer: auto)"
        settings.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MATE_PLUGIN_SGLANG_INDEXER", "1")
            hook = only(sglang_hooks)
        settings.cache_clear()
        assert not hook.installed
        assert hook.reason == f"expected the platform musa, found {platform}"


def only(hooks: ModuleType) -> Any:
    """What becomes of the indexer's hook, of the others none being tried."""
    from mate_plugin.layers import seams, sglang_release

    wanted = {SEAM: hooks.SEAMS[SEAM]}
    (hook,) = seams.install(wanted, None, sglang_release.platform, "SGLang")
    return hook

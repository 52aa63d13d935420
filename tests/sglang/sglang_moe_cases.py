"""What test_moe.py runs inside a process with SGLang: its MoE runner around our core."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from layer_oracle import MoeWeights, MoeWeights16, moe, moe_rows, round_groups
from sglang_layers import publish

E, H, I, T, TOPK = 6, 136, 200, 11, 3  # noqa: E741
BF16 = torch.bfloat16
FACTOR = 2.5
CLOSE = {"rtol": 2e-2, "atol": 2e-2}
KINDS = {"fp8": MoeWeights(E, H, I), "bf16": MoeWeights16(E, H, I, BF16)}


def config(**changes: Any) -> Any:
    """SGLang's MoeRunnerConfig of a whole layer, routed factor included."""
    from sglang.srt.layers.moe.moe_runner.base import MoeRunnerConfig

    fields = {
        "num_experts": E,
        "num_local_experts": E,
        "num_fused_shared_experts": 0,
        "hidden_size": H,
        "intermediate_size_per_partition": I,
        "top_k": TOPK,
        "params_dtype": BF16,
        "routed_scaling_factor": FACTOR,
        "layer": SimpleNamespace(),
    }
    return MoeRunnerConfig(**fields | changes)


def runner(backend: str = "mate", **changes: Any) -> Any:
    """SGLang's MoeRunner of ``backend``, as the layer of its config holds it."""
    from sglang.srt.layers.moe.moe_runner.runner import MoeRunner
    from sglang.srt.layers.moe.utils import resolve_moe_runner_backend

    made = MoeRunner(resolve_moe_runner_backend(backend), config(**changes))
    made.config.layer.runner = made
    return made


def triton_info(weights: MoeWeights, **changes: Any) -> Any:
    from sglang.srt.layers.moe.moe_runner.triton import TritonMoeQuantInfo

    scaled = weights.w13_scale is not None
    fields = {
        "w13_weight": weights.w13,
        "w13_scale": weights.w13_scale,
        "w2_weight": weights.w2,
        "w2_scale": weights.w2_scale,
        "use_fp8_w8a8": scaled,
        "block_shape": [128, 128] if scaled else None,
    }
    return TritonMoeQuantInfo(**fields | changes)


def deep_gemm_info(weights: MoeWeights) -> Any:
    from sglang.srt.layers.moe.moe_runner.deep_gemm import DeepGemmMoeQuantInfo

    scaled = weights.w13_scale is not None
    return DeepGemmMoeQuantInfo(
        w13_weight=weights.w13,
        w13_scale=weights.w13_scale,
        w2_weight=weights.w2,
        w2_scale=weights.w2_scale,
        use_fp8=scaled,
        block_shape=[128, 128] if scaled else None,
    )


INFOS = {"triton": triton_info, "deep_gemm": deep_gemm_info}


def routed(experts: int = E, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, and router weights and ids with -1 among them."""
    chance = torch.Generator().manual_seed(seed)
    hidden = torch.randn(T, H, generator=chance).to(BF16)
    probs = torch.rand(T, TOPK, generator=chance)
    ids = torch.randint(-1, experts, (T, TOPK), generator=chance, dtype=torch.int32)
    assert bool((ids == -1).any())
    return hidden, probs, ids


def standard(hidden: torch.Tensor, probs: torch.Tensor, ids: torch.Tensor, scale=None) -> Any:
    from sglang.srt.layers.moe.token_dispatcher import StandardDispatchOutput
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    return StandardDispatchOutput(hidden, scale, StandardTopKOutput(probs, ids, None))


def run(made: Any, info: Any, *given: Any) -> torch.Tensor:
    """The layer's output, from SGLang's combine input in the standard format."""
    combined = made.run(standard(*given), info)
    assert combined.format.value == "standard"
    return combined.hidden_states


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, **CLOSE)


def whole_layer() -> None:
    """The routed factor is left to the models, which multiply themselves on a CPU."""
    given = routed()
    for weights in KINDS.values():
        for info in INFOS.values():
            before = given[0].clone()
            check(run(runner(), info(weights), *given), moe(weights, *given))
            assert torch.equal(given[0], before), "the rows that entered have been written to"


def options() -> None:
    hidden, probs, ids = routed()
    for weights in KINDS.values():
        info = triton_info(weights)
        on_input = {"apply_router_weight_on_input": True}
        expected = moe(weights, hidden, probs, ids, on_input=True)
        check(run(runner(**on_input), info, hidden, probs, ids), expected)
        limited = moe(weights, hidden, probs, ids, limit=0.4)
        assert (limited - moe(weights, hidden, probs, ids)).abs().max() > 0.1
        check(run(runner(swiglu_limit=0.4), info, hidden, probs, ids), limited)
        rows = moe_rows(weights, hidden, probs, ids)
        apart = {"no_combine": True, "inplace": False}
        check(run(runner(**apart), info, hidden, probs, ids), rows)
        kept = apart | {"no_combine_keep_router_weight": True}
        check(run(runner(**kept), info, hidden, probs, ids), rows * probs.double().unsqueeze(-1))


def scaling_factor() -> None:
    """Runners multiply on CUDA and MUSA, but not rows that they do not sum."""
    from mate_plugin.layers.sglang_dispatch import scaling_factor

    for name, expected in (("cpu", None), ("cuda", FACTOR), ("musa", FACTOR), ("xpu", None)):
        device = SimpleNamespace(type=name)
        assert scaling_factor(config(), device) == expected
        assert scaling_factor(config(routed_scaling_factor=None), device) is None
        assert scaling_factor(config(no_combine=True), device) is None


def bypassed_topk() -> None:
    """Routing that SGLang leaves to the runner is done with SGLang's own selection."""
    from sglang.srt.layers.moe.topk import BypassedTopKOutput, TopKConfig

    publish()
    hidden, probs, ids = routed()
    logits = torch.randn(T, E)
    asked = BypassedTopKOutput(hidden, logits, TopKConfig(top_k=TOPK, torch_native=True))
    given = standard(hidden, probs, ids)._replace(topk_output=asked)
    best = logits.double().softmax(1).topk(TOPK)
    expected = moe(KINDS["bf16"], hidden, best.values / best.values.sum(1, True), best.indices)
    check(runner().run(given, triton_info(KINDS["bf16"])).hidden_states, expected)


def fused_shared_experts() -> None:
    """Shared experts sit behind the routed ones, and each token's ids name them."""
    hidden, probs, ids = routed(experts=E - 1)
    shared = torch.full((T, 1), E - 1, dtype=torch.int32)
    given = (hidden, torch.cat([probs, torch.ones(T, 1)], 1), torch.cat([ids, shared], 1))
    for weights in KINDS.values():
        made = runner(num_fused_shared_experts=1, top_k=TOPK + 1)
        check(run(made, triton_info(weights), *given), moe(weights, *given))


def expert_parallel() -> None:
    """SGLang's dispatcher makes the ids of two ranks local; their outputs add up to the whole."""
    from sglang.srt.layers.moe.token_dispatcher import StandardDispatcher
    from sglang.srt.layers.moe.topk import StandardTopKOutput
    from sglang.srt.runtime_context import get_context, get_parallel

    hidden, probs, ids = routed()
    for weights in KINDS.values():
        total = torch.zeros(T, H, dtype=torch.float64)
        for rank in range(2):
            part = slice(rank * E // 2, (rank + 1) * E // 2)
            info = triton_info(weights)
            for name in ("w13_weight", "w13_scale", "w2_weight", "w2_scale"):
                whole = getattr(info, name)
                setattr(info, name, None if whole is None else whole[part])
            parallel = {"tp_size": 2, "attn_tp_size": 2, "moe_ep_size": 2, "moe_ep_rank": rank}
            with get_context().override_server_args(), get_parallel().override(**parallel):
                made = runner(num_local_experts=E // 2)
                dispatcher = StandardDispatcher(made.config)
                given = dispatcher.dispatch(hidden, StandardTopKOutput(probs, ids, None))
                local = given.topk_output.topk_ids
                assert int(local.max()) == E // 2 - 1
                assert bool((local == -1).sum() > (ids == -1).sum())
                total += dispatcher.combine(made.run(given, info)).double()
        check(total, moe(weights, hidden, probs, ids))


class Event:
    """In the place of a CUDA event."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self) -> None:
        self.recorded += 1


def low_latency_given(rows: Any, scale: Any, counts: torch.Tensor) -> Any:
    from sglang.srt.layers.moe.token_dispatcher.deepep import DeepEPLLDispatchOutput

    ids, probs = torch.zeros(T, TOPK, dtype=torch.int64), torch.ones(T, TOPK)
    return DeepEPLLDispatchOutput(rows, scale, ids, probs, counts, 5)


def fp8_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows ``[E, M, H]`` as DeepEP sends them: e4m3 and a scale per 128 columns, M-major."""
    stored = torch.empty(rows.shape, dtype=torch.float8_e4m3fn)
    scale = torch.empty(E, -(-H // 128), rows.shape[1])
    for start in range(0, H, 128):
        group = rows[..., start : start + 128].float()
        largest = group.abs().amax(-1).clamp(min=1e-10) / 448
        scale[:, start // 128] = largest
        stored[..., start : start + 128] = (group / largest.unsqueeze(-1)).to(stored.dtype)
    return stored, scale.transpose(1, 2)


def low_latency() -> None:
    """FP8 rows are rounded between the GEMMs too, as SGLang's masked path does; 16-bit are not."""
    rows = torch.randn(E, 70, H).to(BF16)
    counts = torch.tensor([70, 0, 3, 64, 65, 1], dtype=torch.int32)
    for name, weights in KINDS.items():
        for fp8 in (False, True)[: 2 if name == "fp8" else 1]:
            given = low_latency_given(*(fp8_rows(rows) if fp8 else (rows, None)), counts)
            for info in INFOS.values():
                combined = runner().run(given, info(weights))
                assert combined.format.value == "deepep_ll"
                assert combined.topk_ids is given.topk_ids
                assert combined.topk_weights is given.topk_weights
                found = combined.hidden_states
                assert (found.shape, found.dtype) == (rows.shape, BF16)
                for e, count in enumerate(counts.tolist()):
                    expected = weights.expert(e, rows[e, :count], fp8=fp8)
                    check(found[e, :count], expected)


def rounds_between() -> None:
    """The rounding between the GEMMs is that of FP8, far above what else may differ."""
    weights = KINDS["fp8"]
    rows = torch.randn(E, 64, H).to(BF16)
    counts = torch.full((E,), 64, dtype=torch.int32)
    found = runner().run(low_latency_given(*fp8_rows(rows), counts), triton_info(weights))
    both = only_first = 0.0
    for e in range(E):
        entering = round_groups(rows[e])
        out = found.hidden_states[e].double()
        both += float((out - weights.through(e, entering, BF16, fp8=True)).norm())
        only_first += float((out - weights.through(e, entering, BF16)).norm())
    assert both < 0.3 * only_first, (both, only_first)


def overlap() -> None:
    """What the second GEMM has finished is reported to DeepEP's combine step."""
    from sglang.srt.batch_overlap.single_batch_overlap import DownGemmOverlapArgs

    rows = torch.randn(E, 70, H).to(BF16)
    counts = torch.tensor([70, 0, 3, 64, 65, 1], dtype=torch.int32)
    for given in (rows, None), fp8_rows(rows):
        made, event, meta = runner(), Event(), {"compute_num_sms": 3}
        signal = torch.zeros(E * 2, dtype=torch.int32)
        args = DownGemmOverlapArgs(num_sms=3, signal=signal, start_event=event)
        made.set_overlap_args(args, meta)
        info = triton_info(KINDS["fp8"])
        found = made.run(low_latency_given(*given, counts), info).hidden_states
        assert event.recorded == 1
        blocks = -(-rows.shape[1] // meta["block_m"])
        for e, count in enumerate(counts.tolist()):
            done = signal[e * blocks : (e + 1) * blocks].tolist()
            used = -(-count // meta["block_m"])
            assert done == [meta["threshold"]] * used + [0] * (blocks - used)
        made.clear_overlap_args()
        again = made.run(low_latency_given(*given, counts), info).hidden_states
        assert event.recorded == 1
        for e, count in enumerate(counts.tolist()):
            assert torch.equal(found[e, :count], again[e, :count])


def refusals() -> None:
    """What our experts do not serve is named, when the runner is made or first used."""
    for changes in (
        {"activation": "gelu"},
        {"is_gated": False},
        {"gemm1_alpha": 1.7},
        {"gemm1_beta": 1.0},
        {"gemm1_clamp_limit": 7.0},
    ):
        (name,) = changes
        with pytest.raises(ValueError, match=f"^{name}: the MoE runner mate serves "):
            runner(**changes)
    weights, given = KINDS["fp8"], routed()
    for name, value in (
        ("b13", torch.zeros(E, 2 * I)),
        ("a2_scale", torch.ones(E)),
        ("use_mxfp8", True),
        ("use_int8_w8a8", True),
        ("per_channel_quant", True),
        ("fuse_swiglu_interleaved", True),
    ):
        with pytest.raises(ValueError, match=f"^{name}: the MoE runner mate serves "):
            run(runner(), triton_info(weights, **{name: value}), *given)
    with pytest.raises(ValueError, match=re.escape("block: expected one of 128x128, got (64, 128")):
        run(runner(), triton_info(weights, block_shape=[64, 128]), *given)
    with pytest.raises(ValueError, match=r"^w13_scale: expected"):
        run(runner(), triton_info(weights, w13_scale=weights.w13_scale[:, :1]), *given)
    with pytest.raises(ValueError, match=r"^hidden_states_scale: expected None"):
        run(runner(), triton_info(weights), *given, torch.ones(T, 2))


def refused_formats() -> None:
    from sglang.srt.layers.moe.token_dispatcher.deepep import DeepEPNormalDispatchOutput
    from sglang.srt.layers.moe.topk import PackedTopKOutput

    hidden, probs, ids = routed()
    info = triton_info(KINDS["fp8"])
    normal = DeepEPNormalDispatchOutput(hidden, None, ids, probs, [1] * E)
    with pytest.raises(NotImplementedError, match=r"dispatch format: .* got deepep_normal"):
        runner().run(normal, info)
    packed = standard(hidden, probs, ids)._replace(topk_output=PackedTopKOutput(ids, None))
    with pytest.raises(NotImplementedError, match=r"topk_output: .* got PackedTopKOutput"):
        runner().run(packed, info)
    core = runner().runner_core
    with pytest.raises(NotImplementedError, match=r"hooks: .* LoRA adapters"):
        core.run_from_dispatch(standard(hidden, probs, ids), info, core.config, hooks=object())
    rows = torch.zeros(E, 4, H, dtype=BF16)
    counts = torch.full((E,), 4, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"hidden: expected .* beside 16-bit weights, got"):
        runner().run(low_latency_given(*fp8_rows(rows), counts), triton_info(KINDS["bf16"]))


def report() -> None:
    """Layers and calls are counted."""
    from mate_plugin import report

    made = runner()
    run(made, triton_info(KINDS["fp8"]), *routed())
    run(made, triton_info(KINDS["fp8"]), *routed())
    rows = torch.randn(E, 4, H).to(BF16)
    counts = torch.full((E,), 4, dtype=torch.int32)
    made.run(low_latency_given(rows, None, counts), triton_info(KINDS["fp8"]))
    (layer,) = report.layers()
    assert (layer.shape, layer.built, layer.calls) == (f"{E}x{H}x{I}", 1, 3)

"""Which kernels serve a GPU, told by a library and a driver that only pretend."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mate_plugin import config, doctor, doctor_gpus
from mate_plugin.config import ConfigError, load
from mate_plugin.kernels import gemm, library, moe, quant, select
from mate_plugin.kernels.mqa_logits import get_paged_mqa_logits_metadata
from mate_plugin.kernels.tilelang import cache
from mate_plugin.layers import plan

Machine = Callable[..., None]
ENTRIES = (
    *("batched_gemm", "ragged_m_gemm", "masked_gemm", "top_k", "moe_route", "group_quant_fp8"),
    *("paged_mqa_metadata", "moe_permute"),
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Pretends a GPU of some compute capability and a library with some entries."""

    def pretend(capability: tuple[int, int] | None = (9, 0), impl: str | None = None) -> None:
        entries = SimpleNamespace(implements_function=lambda op: op in ENTRIES)
        monkeypatch.setattr(library, "missing", lambda _: None)
        monkeypatch.setattr(library, "build_note", lambda _: "built with nvcc 13.0")
        monkeypatch.setitem(library._loaded, "cuda", entries)
        monkeypatch.setattr(select, "_served", set())
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Pretended")
        if impl is None:
            monkeypatch.delenv("MATE_PLUGIN_IMPL", raising=False)
        else:
            monkeypatch.setenv("MATE_PLUGIN_IMPL", impl)

    return pretend


@pytest.mark.parametrize(
    ("capability", "impl", "chosen", "reason"),
    [
        ((9, 0), None, "sm90a", "compute capability 9.0"),
        ((9, 0), "", "sm90a", "compute capability 9.0"),
        ((9, 0), "auto", "sm90a", "compute capability 9.0"),
        ((9, 0), "portable", "portable", "forced by MATE_PLUGIN_IMPL"),
        ((9, 0), "sm90a", "sm90a", "forced by MATE_PLUGIN_IMPL"),
        ((8, 0), None, "portable", "compute capability 8.0"),
        ((10, 0), None, "portable", "compute capability 10.0"),
        ((8, 9), "sm90a", None, "MATE_PLUGIN_IMPL=sm90a wants compute capability 9.0, found 8.9"),
        ((7, 5), None, None, "expected compute capability 8.0 or newer, found 7.5"),
        (None, None, None, "sees no GPU"),
        (
            (9, 0),
            "avx2",
            None,
            "expected one of auto, portable, sm90a, vendor, tilelang, got 'avx2'",
        ),
        ((9, 0), "vendor", None, "MATE_PLUGIN_IMPL=vendor wants a musa device, found cuda"),
    ],
)
def test_the_best_that_fits_or_what_is_forced(
    machine: Machine,
    capability: tuple[int, int] | None,
    impl: str | None,
    chosen: str | None,
    reason: str,
) -> None:
    machine(capability, impl)
    choice = select.choose("batched_gemm", "cuda:0")
    assert choice.impl == chosen
    assert reason in choice.reason
    if chosen:
        select.require("batched_gemm", torch.device("cuda:0"))
        assert select._why_not("batched_gemm", "cuda", 0) == ""
    else:
        with pytest.raises(NotImplementedError, match="batched_gemm: not available on 'cuda': "):
            select.require("batched_gemm", torch.device("cuda:0"))


def test_a_wish_for_the_vendor_is_no_fault_of_cuda(machine: Machine) -> None:
    machine(impl="vendor")
    (finding,) = doctor._cuda()
    assert (finding.topic, finding.state) == ("CUDA library", "note")
    assert "MATE_PLUGIN_IMPL=vendor wants a musa device, found cuda" in finding.text
    machine(impl="avx2")
    (finding,) = doctor._cuda()
    assert finding.state == "wrong"


def test_hopper_kernels_are_no_wish_on_musa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATE_PLUGIN_IMPL", "sm90a")
    choice = select.choose("batched_gemm", "musa")
    assert choice.impl is None
    assert choice.reason == "MATE_PLUGIN_IMPL=sm90a wants a cuda device, found musa"


def test_tilelang_is_a_wish_on_cuda_for_the_ops_that_it_has(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "package", lambda: "tilelang cannot be imported (so it is)")
    cache.why_not.cache_clear()
    machine(impl="tilelang")
    choice = select.choose("ragged_m_gemm", "cuda:0")
    assert choice.impl is None
    why = "MATE_PLUGIN_IMPL=tilelang, but tilelang cannot be imported (so it is)"
    assert choice.reason == why
    assert select.choose("batched_gemm", "cuda:0").impl == "sm90a"
    (finding,) = doctor._cuda()
    assert (finding.state, finding.fix) == ("wrong", "unset or correct MATE_PLUGIN_IMPL")

    monkeypatch.setattr(cache, "package", lambda: SimpleNamespace(__version__="0.1.15"))
    cache.why_not.cache_clear()
    for op, impl in {
        "ragged_m_gemm": "tilelang",
        "masked_gemm": "tilelang",
        "batched_gemm": "sm90a",
        "top_k": "portable",
    }.items():
        assert select.choose(op, "cuda:0").impl == impl
    assert select.choose("masked_gemm", "cuda:0").reason == "TileLang 0.1.15"
    assert not plan.plan_experts("cuda").fused
    built, *_ = doctor._cuda()
    assert built.text == "built with nvcc 13.0; tilelang in use: TileLang 0.1.15"
    machine((8, 0), "tilelang")
    cache.why_not.cache_clear()
    assert "for compute capability 9.0, found 8.0" in select.choose("masked_gemm", "cuda").reason
    machine()
    assert select.choose("ragged_m_gemm", "cuda:0").impl == "sm90a"
    cache.why_not.cache_clear()


def test_ops_differ_in_what_serves_them(machine: Machine) -> None:
    machine()
    assert select.choose("top_k", "cuda").impl == "portable"
    choice = select.choose("sparse_mla", "cuda")
    assert choice.impl is None
    assert choice.reason == "this op has no CUDA kernels in this version"
    machine(impl="sm90a")
    assert select.choose("top_k", "cuda").impl == "portable"


class Step(torch.nn.Module):
    """Some of a layer's calls, on fake tensors of a GPU."""

    def forward(
        self, x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor, ids: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        routing = moe.route(ids, w.shape[0], alignment=128)
        codes, scales = quant.per_token_group_quant_fp8(x)
        rows = moe.permute(codes, routing, 2), moe.permute(scales, routing, 2)
        out = torch.zeros(len(rows[0]), w.shape[1], dtype=x.dtype, device=x.device)
        info = routing.ends
        gemm.ragged_m_moe_gemm_8bit(rows, (w, scale), info, out, "psum_expert", num_mp=5)
        return out + 1, get_paged_mqa_logits_metadata(routing.counts, 64)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops are served by a GPU that torch itself does not see."""
    monkeypatch.setattr(select, "_served", {(op, "cuda", 0) for op in ENTRIES})


@pytest.mark.usefixtures("served")
def test_a_graph_for_a_gpu_leaves_stream_and_processors_to_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    with FakeTensorMode(), torch.device("cuda"):
        arguments = (
            torch.empty(9, 256, dtype=torch.bfloat16),
            torch.empty(3, 128, 256).to(torch.float8_e4m3fn),
            torch.empty(3, 1, 2),
            torch.empty(9, 2, dtype=torch.int32),
        )
        out, schedule = Step()(*arguments)
        assert out.device.type == "cuda"
        assert schedule.shape == (133, 2)
        graph = torch.export.export(Step(), arguments, strict=True).graph
    calls = {node.target._opname: node.args for node in graph.nodes if ours(node)}
    assert {"moe_route", "group_quant_fp8", "moe_permute", "paged_mqa_metadata"} < set(calls)
    assert calls["ragged_m_gemm"][-2:] == (5, 0)
    assert calls["moe_route"][-2:] == (0, 0)


def ours(node: torch.fx.Node) -> bool:
    return getattr(node.target, "namespace", "") == "mate_plugin"


@pytest.mark.usefixtures("served")
def test_overlap_is_refused_while_a_graph_is_traced() -> None:
    class Masked(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
            return gemm.masked_moe_gemm_16bit(a, b, counts, None, enable_overlap=True)[0]

    with FakeTensorMode(), torch.device("cuda"):
        a, b = torch.empty(2, 3, 64).bfloat16(), torch.empty(2, 8, 64).bfloat16()
        arguments = a, b, torch.empty(2, dtype=torch.int32)
        with pytest.raises(Exception, match="enable_overlap: expected False while"):
            torch.export.export(Masked(), arguments, strict=True)


def test_a_layer_on_a_gpu_rounds_and_aligns(machine: Machine) -> None:
    machine()
    found = plan.plan_experts("cuda")
    assert (found.activation, found.gemm_mode, found.alignment_m) == ("fp8", "psum_expert", 128)
    assert plan.plan_experts("cuda", weight_bits=16).activation == "bf16"
    packed = plan.plan_experts("cuda", gemm_mode="per_expert")
    assert not packed.fused
    assert plan.from_key(packed.key) == packed
    assert plan.plan_experts("cpu").fused


def test_a_known_capability_does_not_start_cuda(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: pytest.fail("CUDA started"))
    assert select.choose("ragged_m_gemm", "cuda", (8, 0)).impl == "portable"
    assert plan.plan_experts("cuda", capability=(9, 0)).impl == "sm90a"


def test_layers_on_gpus_round_activations() -> None:
    assert plan.resolve_activation("auto", "cpu") == "bf16"
    assert plan.resolve_activation("auto", "cuda:1") == "fp8"
    assert plan.resolve_activation("auto", "cuda", 16) == "bf16"
    assert plan.resolve_activation("bf16", "cuda") == "bf16"


@pytest.mark.parametrize("wanted", [False, True])
def test_the_doctor_tells_whether_engines_were_asked_to_use_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    environ = {"MATE_PLUGIN_CUDA_MOE": "1"} if wanted else {}
    monkeypatch.setattr(config, "settings", lambda: load(environ))
    machine()
    moe, linear = doctor_gpus.opt_ins()
    ours = "8-bit x 8-bit, psum_expert/128, sm90a: compute capability 9.0"
    assert moe.state == linear.state == "ok"
    if wanted:
        assert moe.text == f"on: {ours}"
    else:
        assert moe.text.startswith("off, engines keep their own on NVIDIA GPUs; ")
        assert moe.text.endswith(f"MATE_PLUGIN_CUDA_MOE=1 would take ours ({ours})")
    assert linear.text.startswith("off, ")
    machine(None)
    moe, _ = doctor_gpus.opt_ins()
    assert moe.state == ("note" if wanted else "ok")
    assert "sees no GPU" in moe.text


def test_the_doctor_tells(machine: Machine) -> None:
    machine()
    built, gpu = doctor._cuda()
    assert (built.state, gpu.state) == ("ok", "ok")
    assert built.text == "built with nvcc 13.0; sm90a in use: compute capability 9.0"
    assert gpu.text == "NVIDIA Pretended, compute capability 9.0: sm90a"
    machine(None)
    (finding,) = doctor._cuda()
    assert finding.state == "note"
    assert "sees no GPU" in finding.text
    machine(impl="avx2")
    (finding,) = doctor._cuda()
    assert finding.state == "wrong"
    assert finding.fix == "unset or correct MATE_PLUGIN_IMPL"


def test_the_doctor_says_how_to_get_the_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(library, "missing", lambda _: "libmate_cuda.so is missing")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.1, V12.1.66'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (finding,) = doctor._cuda()
    assert finding.state == "note"
    assert f"{nvcc} is of release 12.1" in finding.text


def test_the_variable_is_no_setting() -> None:
    load({"MATE_PLUGIN_IMPL": "portable"})
    with pytest.raises(ConfigError, match="did you mean 'MATE_PLUGIN_IMPL'"):
        load({"MATE_PLUGIN_IMPLE": "portable"})

"""Cases of test_vendor.py: which package serves, and what is said where it does not."""

from __future__ import annotations

import sys

import pytest
import torch
from gemm_cases import BF16, E4M3
from musa_vendor_calls import musa, refused, served
from musa_vendor_grouped import NEWER, ragged, run_small

from mate_plugin import doctor_musa
from mate_plugin.kernels import gemm, library, select
from mate_plugin.kernels.vendor import package
from mate_plugin.layers import plan


def choices() -> None:
    """What would serve each op, and why not."""
    version = "0.2.7" if NEWER else "0.2.2"
    for op in package.FUNCTIONS:
        choice = select.choose(op, "musa:0")
        assert (choice.impl, choice.reason) == ("vendor", f"the vendor's mate {version}")
    choice = select.choose("top_k", "musa")
    assert choice.impl is None
    assert choice.reason.startswith("top_k is not in the vendor's API; libmate_musa.so is missing")
    assert select.choose("ragged_m_gemm", "cpu").impl == library.isa()


def the_name_is_theirs() -> None:
    import mate
    import mate.gemm

    assert mate.__version__ == package.installed()
    assert not hasattr(mate, "__mate_plugin__")
    assert mate.gemm is not gemm
    assert callable(mate.moe_fused_gate)


def not_imported_before_it_is_needed() -> None:
    """A tensor of another device does not import it."""
    a = torch.ones(8, 256).to(E4M3)
    gemm.gemm_fp8_nt_groupwise(a, a, torch.ones(8, 2), torch.ones(1, 2))
    assert "mate" not in sys.modules
    assert select.choose("ragged_m_gemm", "musa").impl == "vendor"
    assert "mate" in sys.modules


def signatures() -> None:
    """The stand-in has the published signatures, so what it checks is what the vendor gets."""
    import mate.deep_gemm
    import mate.gemm
    from test_gemm_signatures import INDEXER, PUBLISHED, signature

    for module, table in ((mate.gemm, PUBLISHED), (mate.deep_gemm, INDEXER)):
        for name, parameters in table.items():
            found = signature(getattr(module, name))
            if NEWER and "moe_gemm" in name:
                assert found.pop() == ("backend", "auto")
            assert found == parameters, name


def forced_portable() -> None:
    """MATE_PLUGIN_IMPL=portable leaves the vendor out."""
    choice = select.choose("ragged_m_gemm", "musa")
    assert choice.impl is None
    assert "libmate_musa.so is missing" in choice.reason
    with pytest.raises(NotImplementedError, match=r"libmate_musa\.so is missing"):
        run_small()
    assert "mate" not in sys.modules


def forced_vendor() -> None:
    """MATE_PLUGIN_IMPL=vendor raises for a form that it does not serve."""
    with served("ragged_m_moe_gemm_8bit"):
        run_small()
    case = ragged([128], n=200)
    with pytest.raises(NotImplementedError, match=r"MATE_PLUGIN_IMPL=vendor, but .* N = 200"):
        gemm.ragged_m_moe_gemm_8bit(*musa((case.a, case.b, case.experts, case.out)))
    choice = select.choose("ragged_m_gemm", "cuda")
    assert choice.reason == "MATE_PLUGIN_IMPL=vendor wants a musa device, found cuda"


def lacking(reason: str, forced: bool = False, folder: str | None = None) -> None:
    """The vendor's package is not there, or not usable: the reason is told, twice alike.

    ``folder`` comes first where packages are looked for.
    """
    sys.path[:0] = [folder] if folder else []
    choice = select.choose("ragged_m_gemm", "musa")
    assert choice.impl is None
    assert reason in choice.reason, choice.reason
    missing = "MATE_PLUGIN_IMPL=vendor, but" if forced else "libmate_musa.so is missing"
    assert missing in choice.reason
    with pytest.raises(NotImplementedError) as caught:
        run_small()
    assert reason in str(caught.value)
    assert missing in str(caught.value)


def lacking_a_function() -> None:
    """A function that is gone, or has other parameters, costs its op alone."""
    import mate.gemm

    del mate.gemm.bmm_fp8
    published = mate.gemm.gemm_fp8_nt_groupwise
    mate.gemm.gemm_fp8_nt_groupwise = lambda a, b: (a, b)
    choice = select.choose("batched_gemm", "musa")
    assert choice.impl is None
    assert "gemm_fp8_nt_groupwise of the vendor's mate" in choice.reason
    assert "unexpected keyword argument 'a_scale'" in choice.reason
    with served("ragged_m_moe_gemm_8bit"):
        run_small()
    mate.gemm.gemm_fp8_nt_groupwise = published
    package.find.cache_clear()
    x = torch.empty(1, 128, 128, dtype=E4M3, device="musa")
    one = torch.ones(1, device="musa")
    refused("has no bmm_fp8", lambda: gemm.bmm_fp8(x, x.mT, one, one, BF16))


def errors_are_not_swallowed() -> None:
    """What the vendor raises for a form that it should serve reaches the caller."""
    import mate.gemm

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("musaErrorLaunchFailure")

    found = package.find()
    found.functions["ragged_m_moe_gemm_8bit"] = broken
    with pytest.raises(RuntimeError, match="musaErrorLaunchFailure"):
        run_small()
    assert not [row for row in library.counters() if row["impl"] == "vendor"]
    assert mate.gemm.ragged_m_moe_gemm_8bit is not broken


def layers_take_the_layout_that_is_read() -> None:
    found = plan.plan_experts("musa")
    assert (found.gemm_mode, found.alignment_m, found.impl) == ("per_token", 128, "vendor")
    assert plan.plan_experts("musa", gemm_mode="psum_expert").gemm_mode == "psum_expert"
    assert not found.fused


def the_doctor_tells() -> None:
    (finding,) = doctor_musa.vendor()
    assert finding.state == "ok"
    assert finding.text == f"release {package.installed()} with 12 functions that ours share"
    import mate.gemm

    del mate.gemm.bmm_fp16
    package.find.cache_clear()
    (finding,) = doctor_musa.vendor()
    assert finding.state == "note"
    assert finding.text.endswith(" has no bmm_fp16")


def the_doctor_says(state: str, text: str, folder: str | None = None) -> None:
    sys.path[:0] = [folder] if folder else []
    (finding,) = doctor_musa.vendor()
    assert finding.state == state, finding
    assert text in finding.text, finding
    assert bool(finding.fix) == (state == "wrong"), finding

"""Which of SGLang's seams are filled in this process, and why the others are not."""

from __future__ import annotations

from mate_plugin.config import GPUS
from mate_plugin.indexer import sglang_musa, sglang_scores, sglang_sparse
from mate_plugin.layers import (
    seams,
    sglang_attention,
    sglang_linear,
    sglang_moe,
    sglang_release,
    sglang_shards,
)
from mate_plugin.layers.seams import Seam
from mate_plugin.layers.sglang_release import MATE_CPU, on_mate_cpu, on_musa
from mate_plugin.report import Hook

SEAMS = {
    sglang_moe.NAME: Seam(
        sglang_moe.install, (MATE_CPU, *GPUS), sglang_moe.wanted_by_default, sglang_moe.TARGETS
    ),
    **{
        one.NAME: Seam(one.install, (MATE_CPU,), on_mate_cpu, one.TARGETS)
        for one in (sglang_linear, sglang_shards, sglang_attention, sglang_sparse)
    },
    sglang_musa.NAME: Seam(sglang_musa.install, ("musa",), on_musa, sglang_musa.TARGETS),
    sglang_scores.NAME: Seam(sglang_scores.install, GPUS, on_musa, sglang_scores.TARGETS),
    sglang_moe.DEEP_GEMM: Seam(sglang_moe.install_as_deep_gemm, GPUS, targets=sglang_moe.TARGETS),
}


def install() -> list[Hook]:
    """Try each hook and return what became of it."""
    engine = f"SGLang {sglang_release.version()}"
    return seams.install(SEAMS, unsupported(), sglang_release.platform, engine)


def unsupported() -> str | None:
    """Why no hook fits this SGLang or this machine, or None."""
    return sglang_release.obstacle() or seams.core_obstacle()

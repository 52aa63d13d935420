"""Which of vLLM's seams are filled in this process, and why the others are not."""

from __future__ import annotations

from mate_plugin.config import GPUS
from mate_plugin.indexer import vllm_scores, vllm_sparse
from mate_plugin.layers import seams, vllm_device, vllm_fp8, vllm_linear, vllm_release
from mate_plugin.layers.seams import Seam
from mate_plugin.report import Hook

DEVICES = ("cpu", *GPUS)
SEAMS = {
    vllm_fp8.NAME: Seam(vllm_fp8.install, DEVICES, opt_in={gpu: f"{gpu}.moe" for gpu in GPUS}),
    vllm_linear.NAME: Seam(
        vllm_linear.install, DEVICES, opt_in={gpu: f"{gpu}.linear" for gpu in GPUS}
    ),
    vllm_sparse.NAME: Seam(vllm_sparse.install, theirs=GPUS),
    vllm_scores.NAME: Seam(vllm_scores.install, GPUS, vllm_scores.wanted_by_default),
}


def install() -> list[Hook]:
    """Try each hook and return what became of it."""
    return seams.install(SEAMS, unsupported(), vllm_device.kind, "vLLM")


def unsupported() -> str | None:
    """Why no hook fits this vLLM or this machine, or None."""
    if reason := vllm_release.obstacle():
        return reason
    try:
        from vllm.platforms import current_platform  # noqa: F401
    except ImportError as error:
        return f"vLLM cannot be imported: {error}"
    return seams.core_obstacle()

"""SGLang's seam for the DSA indexer on MUSA, where it has no forward of its own."""

from __future__ import annotations

from mate_plugin.indexer import sglang_indexer
from mate_plugin.layers import sglang_release
from mate_plugin.report import Hook

NAME = "sglang.indexer"
TARGETS = (*sglang_indexer.TARGETS, *sglang_indexer.GPU_TARGETS)


def install() -> Hook:
    """Give ``Indexer`` a ``forward_musa``, or say what stands against it."""
    from sglang.srt.layers.attention.dsa.dsa_indexer import Indexer
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    found = getattr(Indexer, "forward_musa", None)
    if found not in (None, sglang_indexer.forward):
        version = sglang_release.version()
        return Hook(NAME, False, f"SGLang {version} has an Indexer.forward_musa of its own")
    Indexer.forward_musa = sglang_indexer.forward
    HookRegistry.register(sglang_indexer.ROTATE, sglang_indexer.rotate, HookType.REPLACE)
    return Hook(NAME, True, "DSA; not tried on a card, see docs/sglang-musa.md for its options")

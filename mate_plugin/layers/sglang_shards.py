"""Tensor parallelism on the platform mate_cpu: sizes as the checkpoint has them.

SGLang pads them on a CPU until each rank has whole blocks, and leaves the padding to the weight
loader of its own CPU platform. Any other loader would fill padded weights with the wrong rows.
"""

from __future__ import annotations

from typing import Any

from mate_plugin.report import Hook

NAME = "sglang.shards"
_PAD = "sglang.srt.configs.update_config.adjust_config_with_unaligned_cpu_tp"
TARGETS = (_PAD,)


def install() -> Hook:
    """Leave the padding out."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(_PAD, unpadded, HookType.REPLACE)
    return Hook(NAME, True, "tensor parallel shards without padding")


def unpadded(model_config: Any, load_config: Any, tp_size: int) -> Any:  # noqa: ARG001
    """``model_config`` as it is; layers refuse what does not split."""
    return model_config

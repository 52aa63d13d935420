"""What ``mate-plugin doctor`` says about engines' layers on GPUs, which are an opt-in."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

from mate_plugin.findings import Finding

NAMES = {"cuda": "NVIDIA GPUs", "musa": "Moore Threads GPUs"}


def opt_ins() -> Iterator[Finding]:
    """Whether each kind of layer is asked for, and what would serve it on this machine."""
    from mate_plugin.config import ConfigError, settings

    try:
        conf = settings()
    except ConfigError:
        return  # the finding of the settings says it
    for device in NAMES:
        wanted = getattr(conf, device)
        # Few machines have such a card, and the others' users need not hear of it.
        if (
            device == "cuda"
            or importlib.util.find_spec("torch_musa")
            or wanted.moe
            or wanted.linear
        ):
            for kind, describe in _kinds(device, conf.activation).items():
                yield _opt_in(device, kind, getattr(wanted, kind), describe)


def _kinds(device: str, activation: str) -> dict[str, Callable[[], str]]:
    """For each kind of layer, what tells which kernels serve it."""
    from mate_plugin.layers.configured import plan_for
    from mate_plugin.layers.plan import implementation, phrase, resolve_activation

    def linear() -> str:
        impl, reason = implementation("batched_gemm", device)
        return f"{phrase(resolve_activation(activation, device))}, {impl}: {reason}"

    return {"moe": lambda: plan_for(device).describe(), "linear": linear}


def _opt_in(device: str, kind: str, wanted: bool, describe: Callable[[], str]) -> Finding:
    from mate_plugin.config import PREFIX

    topic = f"{device}.{kind}"
    try:
        ours, reason = describe(), ""
    except (ValueError, NotImplementedError) as error:
        ours, reason = "", str(error)
    if not wanted:
        switch = f"{PREFIX}{device.upper()}_{kind.upper()}=1 would take ours ({ours})"
        text = f"off, engines keep their own on {NAMES[device]}; "
        text += switch if ours else f"ours cannot be taken here: {reason}"
        return Finding(topic, "ok", text)
    if ours:
        return Finding(topic, "ok", f"on: {ours}")
    return Finding(topic, "note", f"on, but engines keep their own: {reason}")

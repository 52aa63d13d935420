"""What ``mate-plugin doctor`` says about engines' layers on NVIDIA GPUs, which are an opt-in."""

from __future__ import annotations

from collections.abc import Iterator

from mate_plugin.findings import Finding


def opt_ins() -> Iterator[Finding]:
    """Whether each kind of layer is asked for, and what would serve it on this machine."""
    from mate_plugin.config import PREFIX, ConfigError, settings
    from mate_plugin.layers.configured import plan_for
    from mate_plugin.layers.plan import implementation, phrase, resolve_activation

    try:
        conf = settings()
    except ConfigError:
        return  # the finding of the settings says it

    def linear() -> str:
        impl, reason = implementation("batched_gemm", "cuda")
        return f"{phrase(resolve_activation(conf.activation, 'cuda'))}, {impl}: {reason}"

    kinds = {"moe": lambda: plan_for("cuda").describe(), "linear": linear}
    for kind, describe in kinds.items():
        wanted = getattr(conf.cuda, kind)
        try:
            ours, reason = describe(), ""
        except (ValueError, NotImplementedError) as error:
            ours, reason = "", str(error)
        if not wanted:
            switch = f"{PREFIX}CUDA_{kind.upper()}=1 would take ours ({ours})"
            text = "off, engines keep their own on NVIDIA GPUs; "
            text += switch if ours else f"ours cannot be taken here: {reason}"
            yield Finding(f"cuda.{kind}", "ok", text)
        elif ours:
            yield Finding(f"cuda.{kind}", "ok", f"on: {ours}")
        else:
            yield Finding(f"cuda.{kind}", "note", f"on, but engines keep their own: {reason}")

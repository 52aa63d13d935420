"""Entry points that engines call, in every process of theirs.

Engines log and forget most of what goes wrong in a plugin, so this module imports nothing that can
fail, and what must stop an engine leaves as SystemExit.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import NoReturn

# vLLM formats what is logged under its own name; SGLang formats everything.
_LOGGERS = {"vllm": "vllm.mate_plugin", "sglang": "sglang.mate_plugin"}
_registered: set[str] = set()


def register_vllm() -> None:
    """Install the hooks in this vLLM process; a second call does nothing.

    Ends the process with one line (SystemExit) when the settings are broken, or when ``strict`` is
    set and a wanted hook could not be installed.
    """
    _register("vllm")


def register_sglang() -> None:
    """Install the hooks in this SGLang process; a second call does nothing.

    Ends the process as :func:`register_vllm` does.
    """
    _register("sglang")


def vllm_platform() -> str | None:
    """Name the platform that vLLM shall run on, or None where it keeps its own.

    vLLM hides what goes wrong in here: broken settings are left to :func:`register_vllm`.
    """
    from mate_plugin.config import ConfigError, load

    try:
        # Not those in force: vLLM asks while it is imported, which may be before they are all set.
        conf = load()
    except ConfigError:
        return None
    if not (conf.enabled and conf.vllm.sparse):
        return None
    from mate_plugin.indexer import vllm_platform as platform
    from mate_plugin.layers.vllm_release import obstacle

    return None if obstacle() else platform.choose()


def sglang_platform() -> str | None:
    """Name the platform ``mate_cpu`` where ``SGLANG_PLATFORM`` asks for it, else None.

    Never by itself: any platform from outside makes SGLang forget its own CUDA and MUSA paths.
    """
    if os.environ.get("SGLANG_PLATFORM") != "mate_cpu":
        return None
    from mate_plugin.config import ConfigError, load
    from mate_plugin.layers.sglang_release import obstacle

    try:
        conf = load()
    except ConfigError as error:
        _stop(str(error))
    problem = "enabled is false" if not conf.enabled else obstacle()
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        problem = "SGLANG_USE_CPU_ENGINE=1 asks for SGLang's own CPU platform; unset it"
    if problem:
        _stop(f"SGLANG_PLATFORM=mate_cpu cannot be served: {problem}")
    return "mate_plugin.layers.sglang_platform.MateCpuPlatform"


def _register(engine: str) -> None:
    if engine in _registered:
        return
    _registered.add(engine)
    from mate_plugin import report
    from mate_plugin.config import ConfigError, settings

    try:
        conf = settings()
    except ConfigError as error:
        _stop(str(error))
    logger = logging.getLogger(_LOGGERS[engine])
    logger.setLevel(conf.log_level.upper())
    # What the kernels say goes where the engine's own words go.
    logging.getLogger("mate_plugin").parent = logger
    if not conf.enabled:
        _say(logger, logging.INFO, "mate-plugin: off (enabled is false)")
        return
    if conf.report is not None:
        try:
            report.start(conf.report)
        except OSError as error:
            _stop(f"report: expected a directory that can be written, found {error}")

    if conf.kernel != "auto":
        # The core reads the variable once, when it is loaded.
        os.environ.setdefault("MATE_PLUGIN_ISA", conf.kernel)
    if conf.vendor != "auto":
        os.environ["MATE_PLUGIN_VENDOR"] = conf.vendor
    from mate_plugin.kernels import checks

    checks.set_index_checks(conf.check)
    hooks = importlib.import_module(f"mate_plugin.layers.{engine}_hooks").install()
    line = "mate-plugin: " + "; ".join(
        f"{hook.name} {'installed' if hook.installed else 'not installed'} ({hook.reason})"
        for hook in hooks
    )
    complete = all(hook.installed or not hook.wanted for hook in hooks)
    if conf.strict and not complete:
        _stop(line.removeprefix("mate-plugin: ") + "; strict is set")
    _say(logger, logging.INFO if complete else logging.WARNING, line)


def _say(logger: logging.Logger, level: int, line: str) -> None:
    if logger.hasHandlers():
        logger.log(level, "%s", line)
    elif logger.isEnabledFor(level):
        # A front end loads its plugins before it has set its logging up.
        print(f"{logging.getLevelName(level)} {line}", file=sys.stderr)


def _stop(line: str) -> NoReturn:
    raise SystemExit(f"mate-plugin: {line}")

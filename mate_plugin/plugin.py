"""Entry points that engines call, in every process of theirs.

vLLM logs and forgets whatever goes wrong while it *imports* a plugin, so this module imports
nothing that can fail; what goes wrong in the call itself reaches vLLM's caller and ends
the engine.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

# Lines under vLLM's own logger get its format and its level.
logger = logging.getLogger("vllm.mate_plugin")

_registered = False


def register_vllm() -> None:
    """Install the hooks in this vLLM process; a second call does nothing.

    Ends the process with one line (SystemExit) when the settings are broken, or when ``strict`` is
    set and a wanted hook could not be installed.
    """
    global _registered
    if _registered:
        return
    _registered = True
    from mate_plugin import report
    from mate_plugin.config import ConfigError, settings

    try:
        conf = settings()
    except ConfigError as error:
        _stop(str(error))
    logger.setLevel(conf.log_level.upper())
    if not conf.enabled:
        _say(logging.INFO, "mate-plugin: off (enabled is false)")
        return
    if conf.report is not None:
        try:
            report.start(conf.report)
        except OSError as error:
            _stop(f"report: expected a directory that can be written, found {error}")

    if conf.kernel != "auto":
        # The core reads the variable once, when it is loaded.
        os.environ.setdefault("MATE_PLUGIN_ISA", conf.kernel)
    from mate_plugin.kernels import checks
    from mate_plugin.layers import vllm_hooks

    checks.set_index_checks(conf.check)
    hooks = vllm_hooks.install()
    line = "mate-plugin: " + "; ".join(
        f"{hook.name} {'installed' if hook.installed else 'not installed'} ({hook.reason})"
        for hook in hooks
    )
    complete = all(hook.installed or not vllm_hooks.wanted(hook.name) for hook in hooks)
    if conf.strict and not complete:
        _stop(line.removeprefix("mate-plugin: ") + "; strict is set")
    _say(logging.INFO if complete else logging.WARNING, line)


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


def _say(level: int, line: str) -> None:
    if logger.hasHandlers():
        logger.log(level, "%s", line)
    elif logger.isEnabledFor(level):
        # A front end loads its plugins before it has set its logging up.
        print(f"{logging.getLevelName(level)} {line}", file=sys.stderr)


def _stop(line: str) -> NoReturn:
    raise SystemExit(f"mate-plugin: {line}")

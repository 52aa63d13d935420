"""What ``import mate`` finds where no other ``mate`` is installed.

``zz_mate_plugin.pth`` puts this package's folder behind all others on ``sys.path``. Some packages
can only be found after it (entries that are added later, finders that an editable install appends
to ``sys.meta_path``), so this module looks for them first and hands its place over.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_ALIAS = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_SUBMODULES = ("gemm", "deep_gemm")


def _other_mate() -> ModuleSpec | None:
    """Spec of a ``mate`` that is not this one."""
    others = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != _ALIAS]
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is None:
            continue
        spec = find("mate", others) if finder is PathFinder else find("mate", None)
        if spec is not None and _is_package(spec):
            return spec
    return None


def _is_package(spec: ModuleSpec) -> bool:
    if spec.origin is not None:
        return os.path.realpath(spec.origin) != os.path.realpath(__file__)
    # A folder that happens to be called mate is a package only if it holds the modules.
    folders = list(spec.submodule_search_locations or ())
    return any(os.path.exists(os.path.join(f, m + ".py")) for f in folders for m in _SUBMODULES)


def _hand_over(spec: ModuleSpec) -> None:
    """Load ``spec`` in place of this module; importlib returns what stands in sys.modules."""
    module = importlib.util.module_from_spec(spec)
    sys.modules["mate"] = module
    if spec.loader is not None:
        spec.loader.exec_module(module)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"mate.{name}")
    raise AttributeError(f"module 'mate' has no attribute {name!r}")


if (_spec := _other_mate()) is not None:
    _hand_over(_spec)
else:
    from mate_plugin import __version__ as __version__

    # How mate-plugin doctor tells this package from a vendor's.
    __mate_plugin__ = True

"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

Such a build cannot load its compiled operators, yet registers fake kernels for two of them and
fails at that. tools/venv.py copies this file into the environment, next to a .pth file that imports
it when Python starts: it loads no torch then, and acts when torchvision is imported.
"""

from __future__ import annotations

import importlib.abc
import sys

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# The module that registers the fakes; torch and the compiled operators, if any, are loaded by then.
MODULE = "torchvision._meta_registrations"
# Schemas last as long as what defined them.
_defined: list[object] = []


class Definer(importlib.abc.MetaPathFinder):
    """Finds nothing: it defines the schemas that are missing when ``MODULE`` is looked for."""

    def find_spec(self, name: str, *_: object) -> None:
        """Never a module; the other finders go on."""
        if name == MODULE and not _defined:
            define()


def define() -> None:
    """Define the schemas of ``OPERATORS`` that torch does not know."""
    import torch

    namespace = torch.library.Library("torchvision", "FRAGMENT")
    _defined.append(namespace)
    for operator in OPERATORS:
        if not hasattr(torch.ops.torchvision, operator):
            namespace.define(operator + SCHEMA)


sys.meta_path.insert(0, Definer())

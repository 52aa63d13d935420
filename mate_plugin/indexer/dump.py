"""Selected tokens of every indexer call as files, to compare one implementation with another.

``MATE_PLUGIN_DUMP_SELECTIONS`` names the directory. ``<pid>-<number>.pt`` holds a dictionary of
``layer`` (its name), ``query_start_loc``, ``seq_lens`` and ``indices`` (T, topk), readable with
``torch.load``. Costs time and disk: a tool for debugging.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import torch

from mate_plugin.config import settings
from mate_plugin.indexer.batch import Batch

_numbers = itertools.count()


def selection(layer: str, batch: Batch, indices: torch.Tensor) -> None:
    """Write what one call of the indexer of ``layer`` selected, where the settings ask for it."""
    folder = settings().dump_selections
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "layer": layer,
        "query_start_loc": batch.query_start_loc.clone(),
        "seq_lens": batch.seq_lens.clone(),
        "indices": indices.clone(),
    }
    path = folder / f"{os.getpid()}-{next(_numbers):06d}.pt"
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, path)

"""Arguments that only the GEMMs under the names of DeepGEMM take."""

from __future__ import annotations

from typing import Any

import torch

from mate_plugin.kernels.checks import describe, granularity, index_checks_enabled, integer
from mate_plugin.kernels.ragged_m import Granularity

_RECIPES: dict[tuple[int, int, int], Granularity] = {
    (1, 128, 128): (128, 128, False),
    (1, 1, 128): (1, 128, False),
}


def recipe_of(recipe: Any, recipe_a: Any, recipe_b: Any) -> Granularity:
    """Granularity that ``recipe``, or both of its halves, stand for."""
    if recipe_a is None and recipe_b is None:
        return granularity(recipe, _RECIPES, (1, 128, 128), "recipe")
    if recipe is not None:
        raise ValueError("recipe: expected None beside recipe_a and recipe_b")
    halves = (recipe_a, recipe_b)
    for name, half in zip(("recipe_a", "recipe_b"), halves, strict=True):
        if not isinstance(half, (tuple, list)) or len(half) != 2:
            raise TypeError(f"{name}: expected two integers, got {describe(half)}")
    if recipe_a[1] != recipe_b[1]:
        raise ValueError(f"recipe_b: expected {recipe_a[1]} along k, got {recipe_b[1]}")
    return granularity((*recipe_a[:1], *recipe_b), _RECIPES, (1, 128, 128), "recipe_a, recipe_b")


def check_hints(compiled_dims: Any, disable_ue8m0_cast: Any) -> None:
    """Arguments that change nothing still have to make sense."""
    if not isinstance(compiled_dims, str) or compiled_dims.strip("mnk"):
        raise ValueError(f'compiled_dims: expected letters of "mnk", got {describe(compiled_dims)}')
    if disable_ue8m0_cast not in (None, True):
        raise ValueError(
            "disable_ue8m0_cast: expected True or None (scales are used as they are),"
            f" got {describe(disable_ue8m0_cast)}"
        )


def check_bool(name: str, value: Any) -> None:
    """Raise unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {describe(value)}")


def check_ks(ks_cpu: Any, layout: torch.Tensor, rows: int, scale_rows: int) -> None:
    """Row counts on the host agree with the tensors (with those on the device, if asked)."""
    num_groups = layout.shape[0]
    if not isinstance(ks_cpu, (tuple, list)) or len(ks_cpu) != num_groups:
        raise ValueError(f"ks_cpu: expected {num_groups} integers, got {describe(ks_cpu)}")
    blocks = 0
    for k in ks_cpu:
        integer("ks_cpu", k, 0, optional=False)
        blocks += (k + 127) // 128
    if sum(ks_cpu) != rows:
        raise ValueError(f"ks_cpu: expected a sum of {rows} (rows of a), got {sum(ks_cpu)}")
    if blocks != scale_rows:
        raise ValueError(f"a[1]: expected {blocks} rows for ks_cpu, got {scale_rows}")
    if index_checks_enabled() and layout.tolist() != list(ks_cpu):
        raise ValueError(f"grouped_layout: expected {list(ks_cpu)} (ks_cpu), got {layout.tolist()}")

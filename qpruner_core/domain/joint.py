"""Joint search: the pruning ratios among which the layers of one model choose.

A level is the model pruned by one ratio. As every coupled group lies in one layer, layers of
different levels make a model together: its pruning plan takes every layer's groups from that
layer's level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PruningPlan

STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The model pruned by one ratio."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    ratio: float
    """Pruning ratio; in [0, 1)."""
    plan: PruningPlan
    """What stays; it drops no layer and adds no bias."""
    layout: ModelLayout
    """Layout of the pruned model."""


def composed(dense: ModelLayout, levels: Sequence[Level], chosen: Sequence[int]) -> PruningPlan:
    """Return the pruning plan of a model whose layers have different levels.

    Args:
        dense: The model before it is pruned.
        levels: All levels, as in `QuantizationOutcome.levels`.
        chosen: Index of every layer's level, ``n_layers`` of them.
    """
    if len(chosen) != dense.n_layers:
        raise ValueError(f"need {dense.n_layers} levels, got {len(chosen)}")
    kept = {}
    for group in dense.groups:
        plan = levels[chosen[group.layer]].plan
        if group.name in plan.kept:
            kept[group.name] = plan.kept[group.name]
    shapes = {levels[index].plan.shape for index in chosen}
    is_uniform = len(set(chosen)) == 1 and shapes == {"uniform"}
    return PruningPlan(kept=kept, shape="uniform" if is_uniform else "per-layer")


def removed_share(dense: ModelLayout, pruned: ModelLayout) -> float:
    """Return the share of all parameters that is removed; in [0, 1)."""
    return 1.0 - pruned.parameters / dense.parameters

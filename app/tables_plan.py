"""A plan as a table to edit by hand: one row per layer, one column per tied part."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.search.space import SearchSpace

WHOLE = "whole layer"
PRUNED = "pruned"
"""Column with the pruning ratio of every layer, in a joint search."""


def part_of(unit: str) -> str:
    """Return the column of a search unit: ``mlp`` of ``layer.3.mlp``."""
    parts = unit.split(".", 2)
    return parts[2] if len(parts) > 2 else WHOLE


def title(part: str) -> str:
    """Return a column's title: parts of a block in words, Linears by their names."""
    known = {WHOLE: "Whole layer", "attention": "Attention", "mlp": "MLP"}
    return known.get(part, part)


def layer_of(unit: str) -> int:
    """Return the layer of a search unit such as ``layer.3.mlp``."""
    return int(unit.split(".")[1])


def to_table(space: SearchSpace, plan: PrecisionPlan) -> pd.DataFrame:
    """Return layer x part with precision names; a unit that mixes precisions shows the one of its
    first Linear.
    """
    rows: dict[int, dict[str, str]] = {}
    for unit, linears in space.units.items():
        rows.setdefault(layer_of(unit), {})[part_of(unit)] = plan.precisions[linears[0]]
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "layer"
    return frame


def to_plan(space: SearchSpace, table: pd.DataFrame, levels: Sequence[int] = ()) -> PrecisionPlan:
    """Return the plan that an edited table states.

    Args:
        space: What may be chosen.
        table: As `to_table` made it, edited.
        levels: Pruning level of every layer in a joint search; none for level 0 everywhere.
    """
    choices = {unit: str(table.at[layer_of(unit), part_of(unit)]) for unit in space.units}
    return space.plan(choices, levels)


def differing(layout: ModelLayout, plans: Sequence[PrecisionPlan]) -> frozenset[str]:
    """Return the Linears that not all plans treat alike: by precision, or by the pruning level of
    their layer.
    """

    def treated(plan: PrecisionPlan, name: str, layer: int) -> tuple[str | None, int]:
        return plan.precisions.get(name), plan.levels[layer] if plan.levels else 0

    return frozenset(
        linear.name
        for linear in layout.linears
        if len({treated(plan, linear.name, linear.layer) for plan in plans}) > 1
    )

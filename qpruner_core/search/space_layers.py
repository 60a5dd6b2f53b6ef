"""What a search space has to know of the layers of its model, at one pruning level or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qpruner_core.catalog import PRECISIONS
from qpruner_core.domain.footprint import BYTES_16_BIT
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.errors import BadInputError


def fixed_precisions(layout: ModelLayout, fixed: Mapping[str, str]) -> dict[str, str]:
    """Return Linear -> precision of the layers that are given theirs by hand."""
    unknown = sorted(layer for layer in fixed if int(layer) >= layout.n_layers)
    if unknown or len(fixed) >= layout.n_layers:
        raise BadInputError(
            f"Precisions by hand name {len(fixed)} layers, {', '.join(sorted(fixed, key=int))}, "
            f"and the model has layers 0 to {layout.n_layers - 1}. Name layers it has, and leave "
            f"at least one to the search."
        )
    return {
        linear.name: PRECISIONS.entry(fixed[str(linear.layer)]).name
        for linear in layout.linears
        if str(linear.layer) in fixed
    }


def check_levels(levels: Sequence[ModelLayout]) -> None:
    """Refuse levels whose layers cannot stand in for each other."""
    first = [linear.name for linear in levels[0].linears]
    if any([linear.name for linear in level.linears] != first for level in levels[1:]):
        raise BadInputError(
            "A joint search needs the same layers and Linears at every pruning ratio, but here "
            "whole layers or experts leave. Drop no layers, and prune channels and heads only."
        )


def bytes_beside(levels: Sequence[ModelLayout], unit_layers: Sequence[int]) -> list[list[int]]:
    """Return per level and unit the bytes beside Linears that the level's layer has more than that
    of level 0; the layer's first unit carries them.
    """
    first = {layer: unit for unit, layer in reversed(list(enumerate(unit_layers)))}
    found = []
    for level in levels:
        row = [0] * len(unit_layers)
        pairs = zip(level.layer_others, levels[0].layer_others, strict=True)
        for layer, (here, there) in enumerate(pairs):
            if here != there:
                row[first[layer]] += (here - there) * BYTES_16_BIT
        found.append(row)
    return found


def shape_text(layout: ModelLayout) -> str:
    """Return name, shape and bias of every Linear as one text."""
    return ";".join(
        f"{li.name}:{li.out_features}x{li.in_features}{'b' if li.has_bias else ''}"
        for li in layout.linears
    )


def shared_roles(layout: ModelLayout) -> frozenset[str]:
    """Return the roles that stand in both blocks, as ``c_proj`` does in GPT-2."""
    by_block = {block: set[str]() for block in ("attention", "mlp")}
    for linear in layout.linears:
        by_block[linear.block].add(linear.role)
    return frozenset(by_block["attention"] & by_block["mlp"])

"""What a selection could not do exactly as asked, in sentences for the person."""

from __future__ import annotations

from collections.abc import Sequence

from qpruner_core.domain.layout import GroupLayout, ModelLayout
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.pruning.widths import (
    fitting_multiple,
    group_ladder,
    protected_layers,
    prunable_groups,
)

KINDS = {"kv_heads": "KV heads", "mlp_channels": "MLP channels"}
"""Kind of unit -> words for a person."""


def remarks(layout: ModelLayout, pruned: ModelLayout, spec: PruningSpec) -> tuple[str, ...]:
    """Return one sentence for everything that is not exactly as asked."""
    found = [*_shape_remarks(layout, spec)]
    for kind, words in KINDS.items():
        pairs = [
            (before, after)
            for before, after in zip(layout.groups, pruned.groups, strict=True)
            if before.kind == kind
        ]
        if pairs:
            found += _kind_remarks(layout, pairs, words, spec)
    return tuple(found)


def _shape_remarks(layout: ModelLayout, spec: PruningSpec) -> list[str]:
    if spec.shape != "uniform":
        return []
    found = []
    if protected_layers(layout.n_layers, spec):
        found.append("Uniform widths are the same in every layer, so no layer is protected.")
    if spec.scope == "global":
        found.append("Uniform widths leave nothing to a global scope; units are ranked per layer.")
    return found


def _kind_remarks(
    layout: ModelLayout,
    pairs: Sequence[tuple[GroupLayout, GroupLayout]],
    words: str,
    spec: PruningSpec,
) -> list[str]:
    prunable = {
        group.name for groups in prunable_groups(layout, spec).values() for group in groups
    }
    touched = [pair for pair in pairs if pair[0].name in prunable]
    if not touched:
        return [f"No {words} leave, as every layer has just one of them."]
    found = []
    before, after = (sum(pair[side].n_units for pair in touched) for side in (0, 1))
    share = 1.0 - after / before
    if abs(share - spec.ratio) > 0.02:
        first = touched[0][0]
        narrow = len(group_ladder(layout, first, spec)) < first.n_units and words == "KV heads"
        why = (
            f"as a stock {layout.model_type} config takes only numbers of query heads that divide "
            f"its hidden size of {layout.hidden_size}; per-layer shape has no such limit"
            if narrow
            else "the nearest that whole units and rounded widths give"
        )
        found.append(f"{share:.1%} of the {words} leave rather than {spec.ratio:.1%}, {why}.")
    if touched[0][0].kind == "mlp_channels":
        found += _multiple_remarks(touched, spec)
    return found


def _multiple_remarks(
    touched: Sequence[tuple[GroupLayout, GroupLayout]], spec: PruningSpec
) -> list[str]:
    narrowest = min(before.n_units for before, _ in touched)
    multiple = fitting_multiple(narrowest, spec.width_multiple)
    if multiple != spec.width_multiple:
        return [
            f"MLP widths are multiples of {multiple}, not of {spec.width_multiple}: four times "
            f"that do not fit {narrowest} channels."
        ]
    if min(after.n_units for _, after in touched) < multiple:
        return [
            f"Some MLPs keep fewer than {multiple} channels, so their widths are powers of two."
        ]
    return []

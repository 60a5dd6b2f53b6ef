"""From scores to a pruning plan: NumPy alone, so that a slider can ask it at every move.

The ratio is a share of the parameters of the decoder layers, protected layers counted in the
whole. Whole layers leave first (`request`); layers with a ratio by hand lose their share; all
others make up what is left. Every group is a ladder of allowed widths (`widths`, `ladders`), and
the order in which the model goes down all of them is the scope (`descent`): the plan takes the
first steps, up to the sum of parameters nearest to the ratio.

With ``uniform`` shape every layer of the model keeps the same number of units of a kind
(`uniform`). Protection cannot hold then, as a protected layer would need another width; which
units leave is still decided layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.pruning.descent import Layers, descend
from qpruner_core.pruning.ladders import Ladder, ladders_of, losses_of
from qpruner_core.pruning.reach import check_reach, largest_ratio, plan_of
from qpruner_core.pruning.remarks import remarks
from qpruner_core.pruning.request import Request, Scores, layer_losses, make_request
from qpruner_core.pruning.uniform import uniform_widths
from qpruner_core.pruning.widths import protected_layers, ratios_by_hand

__all__ = ["Selection", "largest_ratio", "protected_layers", "select"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which units stay, what the model then looks like, and what the person should know."""

    plan: PruningPlan
    layout: ModelLayout
    """Layout of the model once the plan is carried out."""
    warnings: tuple[str, ...] = ()
    """Sentences on what could not be had exactly as asked; empty when everything could."""


def select(
    layout: ModelLayout,
    scores: Scores | None,
    spec: PruningSpec,
    *,
    layer_scores: Sequence[float] | None = None,
    removed: PruningPlan | None = None,
) -> Selection:
    """Choose the units and layers that stay.

    Args:
        layout: The model before any pruning.
        scores: Group name -> importance of its units, shape (n_units,), finite, >= 0, of one
            criterion. None keeps the first units of every group: enough for sizes, which in
            per-layer scope do not depend on scores.
        spec: Ratio, scope, shape, protection and rounding.
        layer_scores: Block Influence of every layer of the unpruned model, (n_layers,); whole
            layers leave by it. None when ``scores`` is: the last layers leave then.
        removed: What left in an earlier round of an iterative pruning, in the numbering of
            ``layout``. It leaves in any case, counts towards the ratio, and its scores are not
            looked at.

    Raises:
        InfeasibleRatioError: No selection reaches the ratio under the protections; what can be
            reached is named. Or more layers are to be dropped than can be.
        NotReadyError: A group has no scores, or layers are to be dropped without theirs.
        BadInputError: Scores do not fit their group, are negative or not finite; a ratio by hand
            or ``removed`` names what the model does not have.
    """
    request = make_request(layout, scores, spec, layer_scores, removed)
    is_settled = False
    if spec.ratio > 0.0 or ratios_by_hand(layout, spec):
        ladders = ladders_of(request)
        is_settled = check_reach(request, ladders).is_settled
        plan = plan_of(request, ladders, _widths(request, ladders))
    else:
        plan = request.base
    plan = replace(plan, shape=spec.shape)
    pruned = layout if plan.is_identity else layout.pruned(plan)
    said = remarks(request, plan, pruned, is_settled=is_settled)
    return Selection(plan=plan, layout=pruned, warnings=said)


def _widths(request: Request, ladders: Sequence[Ladder]) -> list[int]:
    """Return the width of every ladder: layers with a ratio by hand first, then all others."""
    layout, spec = request.layout, request.spec
    layers = Layers(
        whole=np.array(layout.layer_parameters, dtype=np.int64),
        gone=layer_losses(layout, request.base),
    )
    target = spec.ratio * int(layers.whole.sum())
    if spec.shape == "uniform":
        return uniform_widths(ladders, target - int(layers.gone.sum()))
    left = target - int(layers.gone.sum())
    by_hand = ratios_by_hand(layout, spec)
    found: dict[str, int] = {}
    for layer, ratio in by_hand.items():
        own = [ladder for ladder in ladders if ladder.group.layer == layer]
        asked = ratio * int(layers.whole[layer]) - int(layers.gone[layer])
        widths = descend(own, layers, spec.scope, asked)
        found |= _named(own, widths)
        left -= sum(losses_of(own, widths).values())
    others = [ladder for ladder in ladders if ladder.group.layer not in by_hand]
    found |= _named(others, descend(others, layers, spec.scope, left))
    return [found[ladder.group.name] for ladder in ladders]


def _named(ladders: Sequence[Ladder], widths: Sequence[int]) -> dict[str, int]:
    return {x.group.name: width for x, width in zip(ladders, widths, strict=True)}

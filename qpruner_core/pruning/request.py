"""What a selection is asked, with the layers that leave whole settled first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.errors import BadInputError, InfeasibleRatioError, NotReadyError
from qpruner_core.pruning.widths import Ints, protected_layers, ratios_by_hand

Scores = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question: this model, these scores, this spec, on top of what left already."""

    layout: ModelLayout
    spec: PruningSpec
    scores: Scores | None
    """Group name -> importance of its units; None for sizes alone."""
    removed: PruningPlan
    """What left in an earlier round; the identity where there was none."""
    dropped: frozenset[int]
    """Layers that leave whole, those of ``removed`` among them."""

    @property
    def base(self) -> PruningPlan:
        """The plan before any unit is chosen: earlier removals and whole layers."""
        layers = {group.name: group.layer for group in self.layout.groups}
        kept = {
            name: units
            for name, units in self.removed.kept.items()
            if layers[name] not in self.dropped
        }
        return PruningPlan(kept=kept, dropped_layers=tuple(sorted(self.dropped)))

    @property
    def removed_experts(self) -> set[str]:
        """Experts that left whole in an earlier round."""
        kept = self.removed.kept
        return {
            group.members[unit]
            for group in self.layout.groups
            if group.members and group.name in kept
            for unit in set(range(group.n_units)) - set(kept[group.name])
        }

    def gone(self, name: str, n_units: int) -> int:
        """Return how many units of a group left in an earlier round."""
        return n_units - len(self.removed.kept.get(name, range(n_units)))


def make_request(
    layout: ModelLayout,
    scores: Scores | None,
    spec: PruningSpec,
    layer_scores: Sequence[float] | None,
    removed: PruningPlan | None,
) -> Request:
    """Return the request, whole layers chosen.

    Raises:
        InfeasibleRatioError: More layers are to be dropped than can be.
        NotReadyError: Layers are to be dropped by scores that are missing.
        BadInputError: Layer scores do not fit the model, or ``removed`` is of another model.
    """
    removed = removed or PruningPlan(kept={})
    _check_removed(layout, removed)
    gone = frozenset(removed.dropped_layers)
    wanted = spec.drop_layers - len(gone)
    if wanted > 0:
        spare = _spare_layers(layout, spec, gone, wanted)
        values = _layer_values(layout, layer_scores, must_be_there=scores is not None)
        least = sorted(spare, key=lambda layer: (values[layer], -layer))
        gone |= frozenset(least[:wanted])
    return Request(layout=layout, spec=spec, scores=scores, removed=removed, dropped=gone)


def layer_losses(layout: ModelLayout, plan: PruningPlan) -> Ints:
    """Return the parameters that every layer loses by a plan, shape (n_layers,)."""
    losses = np.array(layout.layer_parameters, dtype=np.int64)
    if plan.is_identity:
        return np.zeros_like(losses)
    stay = [layer for layer in range(layout.n_layers) if layer not in plan.dropped_layers]
    if stay:
        losses[stay] -= np.array(layout.pruned(plan).layer_parameters, dtype=np.int64)
    return losses


def _check_removed(layout: ModelLayout, removed: PruningPlan) -> None:
    n_units = {group.name: group.n_units for group in layout.groups}
    wrong = [name for name, kept in removed.kept.items() if kept[-1] >= n_units.get(name, 0)]
    wrong += [f"layer {layer}" for layer in removed.dropped_layers if layer >= layout.n_layers]
    if wrong:
        raise BadInputError(
            f"What was removed before names units that this model does not have, in "
            f"{', '.join(map(repr, wrong))}. Give plans of this model before pruning."
        )


def _spare_layers(
    layout: ModelLayout, spec: PruningSpec, gone: frozenset[int], wanted: int
) -> list[int]:
    """Return the layers that may be dropped: neither protected nor given a ratio by hand."""
    kept = protected_layers(layout.n_layers, spec) | ratios_by_hand(layout, spec).keys() | gone
    spare = [layer for layer in range(layout.n_layers) if layer not in kept]
    most = max(0, min(len(spare), layout.n_layers - 1 - len(gone)))
    if wanted > most:
        raise InfeasibleRatioError(
            f"{spec.drop_layers} layers are to be dropped, but at most {most + len(gone)} of "
            f"{layout.n_layers} can be: protected layers and those with a ratio by hand stay, "
            f"and so does one layer in any case. Drop fewer layers, or protect fewer."
        )
    return spare


def _layer_values(
    layout: ModelLayout, layer_scores: Sequence[float] | None, *, must_be_there: bool
) -> NDArray[np.float64]:
    """Return the scores of the layers, all equal where only sizes are asked for."""
    if layer_scores is None:
        if must_be_there:
            raise NotReadyError(
                "Layers are to be dropped, but their Block Influence has not been measured. Score "
                "the model with block_influence first."
            )
        return np.zeros(layout.n_layers)
    values = np.asarray(layer_scores, dtype=np.float64)
    if values.shape != (layout.n_layers,) or not np.isfinite(values).all():
        raise BadInputError(
            f"The layer scores have shape {values.shape} or hold values that are not finite; one "
            f"finite number for each of {layout.n_layers} layers is needed. Score the model again."
        )
    return values

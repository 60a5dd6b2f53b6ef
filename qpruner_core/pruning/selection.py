"""From scores to a pruning plan: NumPy alone, so that a slider can ask it at every move.

Every layer is a ladder of allowed widths (`widths`). Going down one rung is a step; all steps of
one kind of unit (KV heads, MLP channels) are put in one order, and the plan takes the first of
them, up to the number of removed units nearest to ``ratio`` times the units of the unprotected
layers. The order is the scope:

- ``per-layer``: by the share of its layer that a step leaves removed, then by score. All layers
  lose the same share; where rungs are coarse, the least important layers take the rest, so that
  layers differ by one rung and the model meets the ratio as nearly as one rung allows.
- ``global``: by the mean score of the units a step removes.

As the order does not depend on the ratio, a larger ratio removes what a smaller one removes and
more. Ties are broken by index: later units and later layers leave first.

With ``uniform`` shape every layer of the model keeps the same number of units of a kind.
Protection cannot hold then, as a protected layer would need another width; which units leave is
still decided layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpruner_core.domain.layout import GroupLayout, ModelLayout
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.errors import BadInputError, InfeasibleRatioError, NotReadyError
from qpruner_core.pruning.remarks import remarks
from qpruner_core.pruning.widths import (
    group_ladder,
    largest_ratio,
    protected_layers,
    prunable_groups,
)

__all__ = ["Selection", "largest_ratio", "protected_layers", "select"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Scores = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which units stay, what the model then looks like, and what the person should know."""

    plan: PruningPlan
    layout: ModelLayout
    """Layout of the model once the plan is carried out."""
    warnings: tuple[str, ...] = ()
    """Sentences on what could not be had exactly as asked; empty when everything could."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ladder:
    """A group, its units in the order they leave, and the widths it may have."""

    group: GroupLayout
    order: Ints | None
    """Unit indices, first to leave first, shape (n_units,); None for the last unit first."""
    ranked: Floats | None
    """Scores in that order, shape (n_units,); None for all equal."""
    widths: Ints
    """Allowed numbers of units, descending from all of them."""

    @property
    def sizes(self) -> Ints:
        """Units that leave at each step down, shape (n_widths - 1,)."""
        return -np.diff(self.widths)

    @property
    def costs(self) -> Floats:
        """Mean score of the units that leave at each step, shape (n_widths - 1,), ascending."""
        starts = self.group.n_units - self.widths[:-1]
        if self.ranked is None or len(starts) == 0:
            return np.zeros(len(starts))
        gone = self.group.n_units - int(self.widths[-1])
        means = np.add.reduceat(self.ranked[:gone], starts) / self.sizes
        # Rounding may break the order of equal means by one bit, and a step must not overtake its
        # predecessor.
        return np.maximum.accumulate(means)

    def kept(self, width: int) -> tuple[int, ...]:
        """Return the units that stay, ascending, when the group is left with that width."""
        if self.order is None:
            return tuple(range(width))
        stays = np.ones(self.group.n_units, dtype=bool)
        stays[self.order[: self.group.n_units - width]] = False
        return tuple(np.flatnonzero(stays).tolist())


def select(layout: ModelLayout, scores: Scores | None, spec: PruningSpec) -> Selection:
    """Choose the units that stay.

    Args:
        layout: The model before pruning.
        scores: Group name -> importance of its units, shape (n_units,), finite, >= 0, of one
            criterion. None keeps the first units of every group: enough for sizes, which in
            per-layer scope do not depend on scores.
        spec: Ratio, scope, shape, protection and rounding.

    Raises:
        InfeasibleRatioError: The ratio would leave a layer without units; the largest possible is
            named.
        NotReadyError: A group has no scores.
        BadInputError: Scores do not fit their group, are negative or not finite.
    """
    if spec.ratio == 0.0:
        return Selection(plan=PruningPlan(kept={}, shape=spec.shape), layout=layout)
    _check_ratio(layout, spec)
    kept: dict[str, tuple[int, ...]] = {}
    for groups in prunable_groups(layout, spec).values():
        ladders = _ladders(layout, groups, scores, spec)
        widths = _uniform(ladders, spec) if spec.shape == "uniform" else _descend(ladders, spec)
        for ladder, width in zip(ladders, widths, strict=True):
            if width < ladder.group.n_units:
                kept[ladder.group.name] = ladder.kept(width)
    in_order = {group.name: kept[group.name] for group in layout.groups if group.name in kept}
    plan = PruningPlan(kept=in_order, shape=spec.shape)
    if plan.is_identity:
        nothing = (
            f"A pruning ratio of {spec.ratio:g} rounds to no unit at all; nothing is removed."
        )
        return Selection(plan=plan, layout=layout, warnings=(nothing,))
    pruned = layout.pruned(plan)
    return Selection(plan=plan, layout=pruned, warnings=remarks(layout, pruned, spec))


def _check_ratio(layout: ModelLayout, spec: PruningSpec) -> None:
    largest = largest_ratio(layout, spec)
    if largest == 0.0:
        shielded = len(protected_layers(layout.n_layers, spec))
        raise InfeasibleRatioError(
            f"A pruning ratio of {spec.ratio:g} was asked for, but no unit can leave: {shielded} "
            f"of {layout.n_layers} layers are protected and one unit must stay in each. The "
            f"largest possible ratio is 0. Protect fewer layers."
        )
    if spec.ratio > largest + 1e-12:
        named = math.floor(largest * 1e4) / 1e4
        raise InfeasibleRatioError(
            f"A pruning ratio of {spec.ratio:g} would leave a layer without units; at least one "
            f"KV head and one MLP channel stay in each. The largest possible ratio for this model "
            f"is {named:g}. Lower the ratio."
        )


def _ladders(
    layout: ModelLayout, groups: Sequence[GroupLayout], scores: Scores | None, spec: PruningSpec
) -> list[_Ladder]:
    ladders = []
    for group in groups:
        order, ranked = (None, None) if scores is None else _leaving_order(group, scores)
        widths = np.array(group_ladder(layout, group, spec), dtype=np.int64)
        ladders.append(_Ladder(group=group, order=order, ranked=ranked, widths=widths))
    return ladders


def _leaving_order(group: GroupLayout, scores: Scores) -> tuple[Ints, Floats]:
    """Return unit indices as they leave, later ones first among equals, with their scores."""
    values = _checked(group, scores)
    # For floats >= 0 the order of the bits is the order of the numbers: one sort of score and
    # index together is ten times faster than a stable argsort, and the slider sorts 32 layers of
    # 11008 channels.
    last = np.uint64(group.n_units - 1)
    indices = np.arange(group.n_units, dtype=np.uint64)
    keys = (values.view(np.uint32).astype(np.uint64) << np.uint64(32)) | (last - indices)
    keys.sort()
    order = (last - (keys & np.uint64(0xFFFFFFFF))).astype(np.int64)
    return order, values[order].astype(np.float64)


def _checked(group: GroupLayout, scores: Scores) -> NDArray[np.float32]:
    """Return the scores of a group as float32 without negative zeros, or refuse them."""
    if group.name not in scores:
        raise NotReadyError(
            f"There are no importance scores for {group.name!r}, and pruning needs them for every "
            f"unprotected group. Score the model with this criterion first."
        )
    values = np.asarray(scores[group.name], dtype=np.float32)
    if values.shape != (group.n_units,):
        raise BadInputError(
            f"The importance scores of {group.name!r} have shape {values.shape}, but the group "
            f"has {group.n_units} units. Score this model again."
        )
    if not np.isfinite(values).all() or (values < 0.0).any():
        raise BadInputError(
            f"The importance scores of {group.name!r} hold negative or non-finite values; finite "
            f"numbers >= 0 are needed. Score the model again, or choose another criterion."
        )
    return values + np.float32(0.0)


def _descend(ladders: Sequence[_Ladder], spec: PruningSpec) -> list[int]:
    """Return the width of every group when the first steps of the model-wide order are taken."""
    sizes = np.concatenate([ladder.sizes for ladder in ladders])
    costs = np.concatenate([ladder.costs for ladder in ladders])
    shares = np.concatenate([1 - ladder.widths[1:] / ladder.group.n_units for ladder in ladders])
    owners = np.repeat(np.arange(len(ladders)), [len(ladder.sizes) for ladder in ladders])
    keys = (shares, costs) if spec.scope == "global" else (costs, shares)
    order = np.lexsort((-owners, *keys))
    removed = np.concatenate(([0], np.cumsum(sizes[order])))
    n_steps = _nearest(removed, spec.ratio * sum(ladder.group.n_units for ladder in ladders))
    taken = np.bincount(owners[order[:n_steps]], minlength=len(ladders))
    return [int(ladder.widths[n]) for ladder, n in zip(ladders, taken, strict=True)]


def _uniform(ladders: Sequence[_Ladder], spec: PruningSpec) -> list[int]:
    """Return one width for all groups, taken from the ladder of the narrowest."""
    widths = min((ladder.widths for ladder in ladders), key=lambda rungs: int(rungs[0]))
    total = sum(ladder.group.n_units for ladder in ladders)
    rung = _nearest(total - len(ladders) * widths, spec.ratio * total)
    return [int(widths[rung])] * len(ladders)


def _nearest(removed: Ints, target: float) -> int:
    """Return the index of the number nearest to the target; the smaller of two equally near."""
    return int(np.argmin(np.abs(removed - target)))

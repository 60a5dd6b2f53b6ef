"""A coupled group on its way down: in which order its units leave, and where it may stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpruner_core.domain.layout import GroupLayout, ModelLayout
from qpruner_core.errors import BadInputError, NotReadyError
from qpruner_core.pruning.request import Request, Scores
from qpruner_core.pruning.widths import Ints, group_ladder, group_multiple, prunable_groups

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """A group, its units in the order they leave, and the widths it may have."""

    group: GroupLayout
    order: Ints | None
    """Unit indices, first to leave first, shape (n_units,); None for the last unit first."""
    ranked: Floats | None
    """Scores in that order, shape (n_units,); None for all equal."""
    widths: Ints
    """Allowed numbers of units, descending from those that are left; at least one."""
    multiple: int = 1
    """What the widths are multiples of where the ratio allows; >= 1."""
    prices: Ints | None = None
    """Parameters of every unit in the order they leave, where units differ; else None."""

    @property
    def sizes(self) -> Ints:
        """Units that leave at each step down, shape (n_steps,)."""
        return -np.diff(self.widths)

    @property
    def parameters(self) -> Ints:
        """Parameters that leave at each step down, shape (n_steps,)."""
        if self.prices is None:
            return self.sizes * self.group.unit_parameters
        ends = np.concatenate(([0], np.cumsum(self.prices)))[self.group.n_units - self.widths]
        return np.diff(ends)

    @property
    def shares(self) -> Floats:
        """Share of the group that is gone after each step, shape (n_steps,), ascending."""
        return 1.0 - self.widths[1:] / self.group.n_units

    @property
    def breaks(self) -> NDArray[np.bool_]:
        """Whether each step leaves a width that is no multiple, shape (n_steps,)."""
        return np.asarray(self.widths[1:] % self.multiple != 0)

    def costs(self, scope: str) -> Floats:
        """Return what each step costs, shape (n_steps,), ascending.

        In ``balanced`` scope the mean standardised score of the units that leave, else the sum of
        their scores over their parameters.
        """
        n_steps = len(self.widths) - 1
        if self.ranked is None or n_steps == 0:
            return np.zeros(n_steps)
        first, last = (self.group.n_units - int(self.widths[i]) for i in (0, -1))
        values = _standardised(self.ranked[first:]) if scope == "balanced" else self.ranked[first:]
        starts = self.widths[0] - self.widths[:-1]
        sums = np.add.reduceat(values[: last - first], starts)
        costs = sums / (self.sizes if scope == "balanced" else self.parameters)
        # Rounding may break the order of equal means by one bit, and experts differ in price; a
        # step must not overtake its predecessor.
        return np.maximum.accumulate(costs)

    def kept(self, width: int) -> tuple[int, ...]:
        """Return the units that stay, ascending, when the group is left with that width."""
        if self.order is None:
            return tuple(range(width))
        stays = np.ones(self.group.n_units, dtype=bool)
        stays[self.order[: self.group.n_units - width]] = False
        return tuple(np.flatnonzero(stays).tolist())


def ladders_of(request: Request) -> list[Ladder]:
    """Return a ladder for every group that may lose units, in the layout's order.

    Raises:
        NotReadyError: A group has no scores.
        BadInputError: Scores do not fit their group, are negative or not finite.
    """
    layout = request.layout
    gone_experts = {
        group.members[unit]
        for group in layout.groups
        if group.members and group.name in request.removed.kept
        for unit in set(range(group.n_units)) - set(request.removed.kept[group.name])
    }
    return [
        _ladder(request, group)
        for group in prunable_groups(layout, request.spec, request.dropped)
        if group.name not in gone_experts
    ]


def _ladder(request: Request, group: GroupLayout) -> Ladder:
    rungs = group_ladder(request.layout, group, request.spec)
    gone = request.gone(group.name, group.n_units)
    if gone:
        left = group.n_units - gone
        rungs = np.concatenate(([left], rungs[rungs < left]))
    order, ranked = _leaving_order(request, group)
    prices = None
    if group.members:
        prices = expert_parameters(request, group)
        prices = prices[::-1] if order is None else prices[order]
    return Ladder(
        group=group,
        order=order,
        ranked=ranked,
        widths=rungs,
        multiple=group_multiple(group, request.spec),
        prices=prices,
    )


def expert_parameters(request: Request, group: GroupLayout) -> Ints:
    """Return what every expert of a group owns, without what it lost before; shape (n_units,)."""
    layout = request.layout
    inside = dict.fromkeys(group.members, 0)
    for linear in layout.linears:
        owner = linear.name.rpartition(".")[0]
        if owner in inside:
            inside[owner] += linear.parameters
    for channels in layout.groups:
        if channels.name in inside:
            lost = request.gone(channels.name, channels.n_units)
            inside[channels.name] -= lost * channels.unit_parameters
    router = _router_parameters(layout, group)
    return np.array([inside[member] + router for member in group.members], dtype=np.int64)


def _router_parameters(layout: ModelLayout, group: GroupLayout) -> int:
    """Return the entries of the router that leave with one expert."""
    shapes = {linear.name: linear.weight_shape for linear in layout.linears}
    total = 0
    for part in group.slices:
        module, _, leaf = part.tensor.rpartition(".")
        across = 1
        if leaf == "weight":
            across = shapes[module][1 - part.axis] if module in shapes else layout.hidden_size
        total += part.unit_size * across
    return total


def _leaving_order(request: Request, group: GroupLayout) -> tuple[Ints | None, Floats | None]:
    """Return unit indices as they leave, with their scores.

    Units of an earlier round come first; among equal scores, later units.
    """
    kept = request.removed.kept.get(group.name)
    if request.scores is None:
        if kept is None:
            return None, None
        stays = np.array(kept, dtype=np.int64)
        return np.concatenate((_others(group, stays), stays[::-1])), None
    values = _checked(group, request.scores, kept)
    # For floats >= 0 the order of the bits is the order of the numbers: one sort of score and
    # index together is ten times faster than a stable argsort, and the slider sorts 32 layers of
    # 11008 channels.
    last = np.uint64(group.n_units - 1)
    indices = np.arange(group.n_units, dtype=np.uint64)
    keys = (values.view(np.uint32).astype(np.uint64) << np.uint64(32)) | (last - indices)
    keys.sort()
    order = (last - (keys & np.uint64(0xFFFFFFFF))).astype(np.int64)
    if kept is not None:
        stays = np.zeros(group.n_units, dtype=bool)
        stays[list(kept)] = True
        order = np.concatenate((order[~stays[order]], order[stays[order]]))
    return order, values[order].astype(np.float64)


def _others(group: GroupLayout, units: Ints) -> Ints:
    return np.setdiff1d(np.arange(group.n_units), units)[::-1]


def _checked(
    group: GroupLayout, scores: Scores, kept: Sequence[int] | None
) -> NDArray[np.float32]:
    """Return the scores of a group as float32 without negative zeros, or refuse them.

    What stands in the place of units that left before is not looked at.
    """
    if group.name not in scores:
        raise NotReadyError(
            f"There are no importance scores for {group.name!r}, and pruning needs them for every "
            f"unprotected group. Score the model with this criterion first."
        )
    given: NDArray[Any] = np.asarray(scores[group.name])
    if given.shape != (group.n_units,):
        raise BadInputError(
            f"The importance scores of {group.name!r} have shape {given.shape}, but the group "
            f"has {group.n_units} units. Score this model again."
        )
    values = np.asarray(given, dtype=np.float32)
    if kept is not None:
        values = np.zeros(group.n_units, dtype=np.float32)
        values[list(kept)] = given[list(kept)]
    if not np.isfinite(values).all() or (values < 0.0).any():
        raise BadInputError(
            f"The importance scores of {group.name!r} hold negative or non-finite values; finite "
            f"numbers >= 0 are needed. Score the model again, or choose another criterion."
        )
    return values + np.float32(0.0)


def _standardised(ranked: Floats) -> Floats:
    """Return (s - mean) / std of ascending scores; zeros where all are equal.

    Computed on the ranked scores, so that it does not depend on how units are numbered.
    """
    if ranked[0] == ranked[-1]:
        return np.zeros_like(ranked)
    return np.asarray((ranked - ranked.mean()) / ranked.std(), dtype=np.float64)

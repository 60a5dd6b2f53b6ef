"""A coupled group on its way down: in which order its units leave, and where it may stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpruner_core.domain.layout import GroupLayout
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

    def parameters_to(self, width: int) -> int:
        """Return the parameters that leave on the way down to a width."""
        if self.prices is None:
            return (int(self.widths[0]) - width) * self.group.unit_parameters
        first, last = (self.group.n_units - n for n in (int(self.widths[0]), width))
        return int(self.prices[first:last].sum())

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

        In ``balanced`` and ``standardised`` scope the mean of the units that leave, each score on
        the scale of its group (`RESCALED`); else the sum of their scores over their parameters.
        """
        n_steps = len(self.widths) - 1
        if self.ranked is None or n_steps == 0:
            return np.zeros(n_steps)
        first, last = (self.group.n_units - int(self.widths[i]) for i in (0, -1))
        left = self.ranked[first:]
        values = RESCALED[scope](left) if scope in RESCALED else left
        starts = self.widths[0] - self.widths[:-1]
        sums = np.add.reduceat(values[: last - first], starts)
        costs = sums / (self.sizes if scope in RESCALED else self.parameters)
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
    gone = request.removed_experts
    groups = [
        group
        for group in prunable_groups(request.layout, request.spec, request.dropped)
        if group.name not in gone
    ]
    own = module_parameters(request) if any(group.members for group in groups) else {}
    return [_ladder(request, group, own) for group in groups]


def _ladder(request: Request, group: GroupLayout, own: Mapping[str, int]) -> Ladder:
    rungs = group_ladder(request.layout, group, request.spec)
    gone = request.gone(group.name, group.n_units)
    if gone:
        left = group.n_units - gone
        rungs = np.concatenate(([left], rungs[rungs < left]))
    order, ranked = _leaving_order(request, group)
    prices = None
    if group.members:
        prices = np.array([own[member] + own[group.name] for member in group.members])
        prices = prices[::-1] if order is None else prices[order]
    return Ladder(
        group=group,
        order=order,
        ranked=ranked,
        widths=rungs,
        multiple=group_multiple(group, request.spec),
        prices=prices,
    )


def module_parameters(request: Request) -> dict[str, int]:
    """Return expert -> what it owns, without what it lost in earlier rounds, and sparse block ->
    the entries of its router that leave with one expert.
    """
    layout = request.layout
    own: dict[str, int] = {}
    for linear in layout.linears:
        owner = linear.name.rpartition(".")[0]
        own[owner] = own.get(owner, 0) + linear.parameters
    shapes = {linear.name: linear.weight_shape for linear in layout.linears}
    for group in layout.groups:
        if group.kind == "expert_channels":
            own[group.name] -= request.gone(group.name, group.n_units) * group.unit_parameters
        elif group.members:
            own[group.name] = _rows_of_a_unit(group, shapes, layout.hidden_size)
    return own


def _rows_of_a_unit(
    group: GroupLayout, shapes: Mapping[str, tuple[int, int]], hidden_size: int
) -> int:
    """Return the entries that one unit owns directly in the tensors of its group."""
    total = 0
    for part in group.slices:
        module, _, leaf = part.tensor.rpartition(".")
        across = shapes[module][1 - part.axis] if module in shapes else hidden_size
        total += part.unit_size * (across if leaf == "weight" else 1)
    return total


def leaving_members(ladders: Sequence[Ladder], widths: Sequence[int]) -> set[str]:
    """Return the experts that leave when every ladder goes down to a width."""
    return {
        ladder.group.members[unit]
        for ladder, width in zip(ladders, widths, strict=True)
        if ladder.group.members
        for unit in set(range(ladder.group.n_units)) - set(ladder.kept(width))
    }


def losses_of(ladders: Sequence[Ladder], widths: Sequence[int]) -> dict[int, int]:
    """Return layer -> parameters that leave when every ladder goes down to a width.

    The channels of experts that leave count with their expert alone.
    """
    with_expert = leaving_members(ladders, widths)
    losses: dict[int, int] = {}
    for ladder, width in zip(ladders, widths, strict=True):
        if ladder.group.name not in with_expert:
            layer = ladder.group.layer
            losses[layer] = losses.get(layer, 0) + ladder.parameters_to(width)
    return losses


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


def _relative(ranked: Floats) -> Floats:
    """Return s / mean of ascending scores; ones where all are equal, zeros included."""
    if ranked[0] == ranked[-1]:
        return np.ones_like(ranked)
    return np.asarray(ranked / ranked.mean(), dtype=np.float64)


def _standardised(ranked: Floats) -> Floats:
    """Return (s - mean) / std of ascending scores; zeros where all are equal."""
    if ranked[0] == ranked[-1]:
        return np.zeros_like(ranked)
    return np.asarray((ranked - ranked.mean()) / ranked.std(), dtype=np.float64)


RESCALED: Mapping[str, Callable[[Floats], Floats]] = {
    "balanced": _relative,
    "standardised": _standardised,
}
"""Scope -> how the scores of a group are brought to one scale. Both are computed on the ranked
scores, so that they do not depend on how units are numbered."""

"""The predicted front: the best plan under every budget at once, if sensitivities simply add up.

    loss(plan) - loss(16 bit)  ~  sum over units l of s_l(b_l)

Minimising that sum under a byte budget is a multiple-choice knapsack. Merging one unit after the
other and keeping every non-dominated pair (bytes, loss) solves it exactly for all budgets in one
pass (Nemhauser and Ullmann, Management Science 15(9), 1969). Everything here is *estimated*, and
screens say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import SensitivityCell
from qpruner_core.errors import NotReadyError
from qpruner_core.search.space import Code, SearchSpace

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_STATES = 16_384
"""Non-dominated states kept exactly; beyond that states are bucketed by bytes (see `front`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedPoint:
    """One point of the predicted front."""

    plan: PrecisionPlan
    weight_bytes: int
    """Bytes of the whole model under the plan."""
    loss_increase: float
    """Predicted loss minus the loss at 16 bit; nats per token, >= 0."""


class Front(Sequence[PredictedPoint]):
    """The predicted front by ascending bytes; plans are built when a point is looked at.

    Attributes:
        weight_bytes: Bytes of the whole model, shape ``(n_points,)``, ascending.
        loss_increase: Predicted increase, shape ``(n_points,)``, descending; nats per token.
        slack_bytes: 0 when exact. Otherwise the point under any budget B is at least as good as
            the exact optimum under ``B - slack_bytes``.
    """

    def __init__(
        self,
        space: SearchSpace,
        weight_bytes: Integers,
        loss_increase: Floats,
        options: NDArray[np.int16],
        slack_bytes: int,
    ) -> None:
        self.space = space
        self.weight_bytes = weight_bytes
        self.loss_increase = loss_increase
        self.slack_bytes = slack_bytes
        self.options = options  # (n_points, n_units), indices into the options of the space

    def __len__(self) -> int:
        return len(self.weight_bytes)

    @overload
    def __getitem__(self, index: int) -> PredictedPoint: ...
    @overload
    def __getitem__(self, index: slice) -> list[PredictedPoint]: ...
    def __getitem__(self, index: int | slice) -> PredictedPoint | list[PredictedPoint]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return PredictedPoint(
            plan=self.space.decode(self.code(index)),
            weight_bytes=int(self.weight_bytes[index]),
            loss_increase=float(self.loss_increase[index]),
        )

    def code(self, index: int) -> Code:
        """Return the code of a point's plan."""
        code = self.space.code_of_options([int(option) for option in self.options[index]])
        if code is None:
            raise ValueError("a point of the front lies outside its space")
        return code

    def codes(self) -> list[Code]:
        """Return the codes of all points."""
        return [self.code(index) for index in range(len(self))]

    def __iter__(self) -> Iterator[PredictedPoint]:
        return (self[i] for i in range(len(self)))

    def thinned(self, n_points: int) -> list[PredictedPoint]:
        """Return at most that many points, both ends included, spread evenly over the bytes."""
        if len(self) <= n_points:
            return list(self)
        targets = np.linspace(self.weight_bytes[0], self.weight_bytes[-1], n_points)
        nearest = np.searchsorted(self.weight_bytes, targets, side="right") - 1
        return [self[int(i)] for i in np.unique(nearest)]


def unit_costs(
    space: SearchSpace, sensitivities: Iterable[SensitivityCell], signal: str = "loss"
) -> Floats:
    """Return the predicted loss increase of every unit at every option, cleaned of noise.

    A measured sensitivity may come out negative, or a larger precision worse than a smaller one,
    when the true difference is below the noise of the evaluation. Both would make the front prefer
    noise, so every value is raised to at least that of every option that keeps strictly more: a
    larger precision at the same pruning level, or a larger level at the same precision. Without
    levels every value is raised to at least 0 as well. Equal-sized precisions (nf4, fp4) stay as
    measured.

    Args:
        space: The search space.
        sensitivities: Cells of all its units and options, in any order.
        signal: ``"loss"``, or ``"kl"`` for the divergence of predictions where it was measured.
            Levels are always judged by loss: a model that is pruned less differs from the
            reference too, but for the better.

    Returns:
        Shape ``(n_units, n_options)``, in the order of the space; nats per token.

    Raises:
        NotReadyError: A unit was not measured at some option.
    """
    by_kl = signal == "kl" and space.joint == "none"
    measured = {
        (cell.unit, (cell.level, cell.precision)): (
            cell.kl if by_kl and cell.kl is not None else cell.loss_increase
        )
        for cell in sensitivities
    }
    pairs = [(unit, option) for unit in space.units for option in space.options]
    missing = [pair for pair in pairs if pair not in measured]
    if missing:
        unit, (level, precision) = missing[0]
        where = f" at pruning level {level}" if space.joint != "none" else ""
        raise NotReadyError(
            f"{len(missing)} of {len(pairs)} sensitivities are missing, such as {unit} at "
            f"{precision}{where}. Measure those of this search first (step quantize)."
        )
    costs = np.array([measured[pair] for pair in pairs], dtype=np.float64)
    costs = costs.reshape(len(space.units), len(space.options))
    return _monotone(space, np.maximum(costs, 0.0) if space.joint == "none" else costs)


def _monotone(space: SearchSpace, costs: Floats) -> Floats:
    """Return the costs with every option raised to those that keep strictly more than it."""
    totals = np.array(space.unit_bytes).sum(axis=0)  # ascending
    for column in range(len(space.options) - 2, -1, -1):
        level, precision = space.options[column]
        more = [
            index
            for index, (other_level, other) in enumerate(space.options)
            if totals[index] > totals[column] and (other_level == level or other == precision)
        ]
        if more:
            costs[:, column] = np.maximum(costs[:, column], costs[:, more].max(axis=1))
    return costs


def predict(
    space: SearchSpace,
    sensitivities: Iterable[SensitivityCell],
    plan: PrecisionPlan,
    signal: str = "loss",
) -> float:
    """Return the loss increase that the sensitivities predict for a plan; nats per token.

    Raises:
        BadInputError: The plan is not in the space.
        NotReadyError: A sensitivity is missing.
    """
    costs = unit_costs(space, sensitivities, signal)
    chosen = space.option_indices(space.code(plan))
    return float(sum(row[option] for row, option in zip(costs, chosen, strict=True)))


def front(
    space: SearchSpace,
    sensitivities: Iterable[SensitivityCell],
    max_states: int = MAX_STATES,
    *,
    signal: str = "loss",
    sizes: Integers | None = None,
) -> Front:
    """Return the best plan under every budget (see `solve`) for measured sensitivities.

    Raises:
        NotReadyError: A sensitivity is missing.
    """
    return solve(space, unit_costs(space, sensitivities, signal), sizes, max_states)


def solve(
    space: SearchSpace,
    costs: Floats,
    sizes: Integers | None = None,
    max_states: int = MAX_STATES,
) -> Front:
    """Return the best plan under every budget, exactly as long as at most ``max_states`` are
    non-dominated.

    Beyond that, states are bucketed by bytes and each bucket keeps its best loss, so that a
    bucketing of width w costs at most w bytes of budget; the sum of all widths is stated in
    `Front.slack_bytes`. The smallest plan always stays.

    A joint search with one pruning level for the model is solved level by level; what is best of
    all levels stays.

    Args:
        space: The search space.
        costs: Loss increase of every unit at every option, ``(n_units, n_options)``; nats.
        sizes: What stands in the place of bytes, ``(n_units, n_options)``, >= 0; None for the
            bytes of the space.
        max_states: Non-dominated states kept.
    """
    table = np.array(space.unit_bytes, dtype=np.int64) if sizes is None else sizes
    fixed = space.fixed_bytes if sizes is None else 0
    if space.joint != "global":
        return Front(space, *_solve(table, costs, fixed, max_states))
    parts = []
    for level in range(len(space.levels)):
        columns = [i for i, (of, _) in enumerate(space.options) if of == level]
        total, loss, chosen, slack = _solve(
            table[:, columns], costs[:, columns], fixed, max_states
        )
        parts.append((total, loss, np.array(columns, dtype=np.int16)[chosen], slack))
    return Front(space, *_best_of(parts))


_Solved = tuple[Integers, Floats, NDArray[np.int16], int]
"""Bytes, loss and option per unit of every point, and the slack."""


def _solve(sizes: Integers, costs: Floats, fixed: int, max_states: int) -> _Solved:
    # Units of equal shape first and together: their sums of bytes coincide and states stay few.
    order = sorted(range(len(sizes)), key=lambda unit: tuple(sizes[unit]))
    total, loss = np.array([fixed], dtype=np.int64), np.zeros(1)
    steps: list[tuple[NDArray[np.int32], NDArray[np.int8]]] = []
    slack = 0
    for unit in order:
        parent, choice = _merge(total, loss, sizes[unit], costs[unit])
        total, loss = total[parent] + sizes[unit][choice], loss[parent] + costs[unit][choice]
        if len(total) > max_states:
            kept, width = _bucket(total, max_states)
            total, loss, parent, choice = total[kept], loss[kept], parent[kept], choice[kept]
            slack += width
        steps.append((parent.astype(np.int32), choice.astype(np.int8)))
    return total, loss, _trace(steps, order, len(total)).astype(np.int16), slack


def _best_of(parts: Sequence[_Solved]) -> _Solved:
    """Return the non-dominated of several fronts."""
    total = np.concatenate([part[0] for part in parts])
    loss = np.concatenate([part[1] for part in parts])
    chosen = np.concatenate([part[2] for part in parts])
    order = np.lexsort((loss, total))
    best_before = np.minimum.accumulate(loss[order])
    kept = order[np.append(True, loss[order][1:] < best_before[:-1])]
    return total[kept], loss[kept], chosen[kept], max(part[3] for part in parts)


def best_under(
    front: Front, budget_bytes: int, reference_bytes: int | None = None
) -> PredictedPoint:
    """Return the point of least predicted loss within a budget.

    Args:
        front: The predicted front.
        budget_bytes: Bytes the whole model may take.
        reference_bytes: What a budget given as a fraction refers to, for the error message; the
            model of the space at 16 bit when None.

    Raises:
        InfeasibleBudgetError: Even the smallest plan is larger; the message names the smallest
        possible.
    """
    index = int(np.searchsorted(front.weight_bytes, budget_bytes, side="right")) - 1
    if index < 0:
        front.space.check_budget(budget_bytes, reference_bytes)
    return front[index]


def _merge(
    total: Integers, loss: Floats, sizes: Integers, costs: Floats
) -> tuple[Integers, Integers]:
    """Return state and option of every non-dominated sum of a state and an option, by ascending
    bytes.
    """
    totals = (sizes[:, None] + total).ravel()  # (n_options * n_states,)
    losses = (costs[:, None] + loss).ravel()
    order = np.argsort(totals, kind="stable")  # one ascending run per option: timsort merges them
    totals, losses = totals[order], losses[order]
    best_before = np.minimum.accumulate(losses)
    better = np.flatnonzero(np.append(True, losses[1:] < best_before[:-1]))
    last_of_its_bytes = np.append(totals[better][1:] > totals[better][:-1], True)
    chosen = order[better[last_of_its_bytes]]
    return chosen % len(total), chosen // len(total)


def _bucket(total: Integers, n_buckets: int) -> tuple[Integers, int]:
    """Return the last (best) state of each bucket of bytes, and the width of a bucket."""
    width = int(-(-(total[-1] - total[0] + 1) // n_buckets))
    bucket = (total - total[0]) // width
    last = np.flatnonzero(np.append(bucket[1:] > bucket[:-1], True))
    return np.unique(np.append(0, last)), width


def _trace(
    steps: list[tuple[NDArray[np.int32], NDArray[np.int8]]], order: list[int], n_points: int
) -> NDArray[np.int8]:
    """Return the code of every final state by following its parents back, shape ``(n_points,
    n_units)``.
    """
    codes = np.zeros((n_points, len(order)), dtype=np.int8)
    at = np.arange(n_points)
    for unit, (parent, choice) in zip(reversed(order), reversed(steps), strict=True):
        codes[:, unit] = choice[at]
        at = parent[at].astype(np.int64)
    return codes

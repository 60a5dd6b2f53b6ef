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
from qpruner_core.search.space import SearchSpace

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
        codes: NDArray[np.int8],
        slack_bytes: int,
    ) -> None:
        self.space = space
        self.weight_bytes = weight_bytes
        self.loss_increase = loss_increase
        self.slack_bytes = slack_bytes
        self._codes = codes  # (n_points, n_units)

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
            plan=self.space.decode(tuple(int(c) for c in self._codes[index])),
            weight_bytes=int(self.weight_bytes[index]),
            loss_increase=float(self.loss_increase[index]),
        )

    def __iter__(self) -> Iterator[PredictedPoint]:
        return (self[i] for i in range(len(self)))

    def thinned(self, n_points: int) -> list[PredictedPoint]:
        """Return at most that many points, both ends included, spread evenly over the bytes."""
        if len(self) <= n_points:
            return list(self)
        targets = np.linspace(self.weight_bytes[0], self.weight_bytes[-1], n_points)
        nearest = np.searchsorted(self.weight_bytes, targets, side="right") - 1
        return [self[int(i)] for i in np.unique(nearest)]


def unit_costs(space: SearchSpace, sensitivities: Iterable[SensitivityCell]) -> Floats:
    """Return the predicted loss increase of every unit at every precision, cleaned of noise.

    A measured sensitivity may come out negative, or a larger precision worse than a smaller one,
    when the true difference is below the noise of the evaluation. Both would make the front prefer
    noise, so every value is clamped to at least 0 and to at least the value of every precision of
    the space that takes strictly more bytes of the whole model. Equal-sized precisions (nf4, fp4)
    stay as measured.

    Returns:
        Shape ``(n_units, n_precisions)``, in the order of the space; nats per token, >= 0.

    Raises:
        NotReadyError: A unit was not measured at some precision.
    """
    measured = {(cell.unit, cell.precision): cell.loss_increase for cell in sensitivities}
    pairs = [(unit, precision) for unit in space.units for precision in space.precisions]
    missing = [
        f"{unit} at {precision}" for unit, precision in pairs if (unit, precision) not in measured
    ]
    if missing:
        raise NotReadyError(
            f"{len(missing)} of {len(pairs)} sensitivities are missing, such as {missing[0]}. "
            f"Measure those of this search first (step quantize)."
        )
    costs = np.array([measured[pair] for pair in pairs], dtype=np.float64)
    costs = np.maximum(costs.reshape(len(space.units), len(space.precisions)), 0.0)
    totals = np.array(space.unit_bytes).sum(axis=0)
    for column in range(len(space.precisions) - 2, -1, -1):
        larger = totals > totals[column]
        if larger.any():
            costs[:, column] = np.maximum(costs[:, column], costs[:, larger].max(axis=1))
    return costs


def predict(
    space: SearchSpace, sensitivities: Iterable[SensitivityCell], plan: PrecisionPlan
) -> float:
    """Return the loss increase that the sensitivities predict for a plan; nats per token, >= 0.

    Raises:
        BadInputError: The plan is not in the space.
        NotReadyError: A sensitivity is missing.
    """
    costs = unit_costs(space, sensitivities)
    return float(sum(row[choice] for row, choice in zip(costs, space.code(plan), strict=True)))


def front(
    space: SearchSpace, sensitivities: Iterable[SensitivityCell], max_states: int = MAX_STATES
) -> Front:
    """Return the best plan under every budget, exactly as long as at most ``max_states`` are
    non-dominated.

    Beyond that, states are bucketed by bytes and each bucket keeps its best loss, so that a
    bucketing of width w costs at most w bytes of budget; the sum of all widths is stated in
    `Front.slack_bytes`. The smallest plan always stays.

    Raises:
        NotReadyError: A sensitivity is missing.
    """
    costs = unit_costs(space, sensitivities)
    sizes = np.array(space.unit_bytes, dtype=np.int64)
    # Units of equal shape first and together: their sums of bytes coincide and states stay few.
    order = sorted(range(len(sizes)), key=lambda unit: space.unit_bytes[unit])
    total, loss = np.array([space.fixed_bytes], dtype=np.int64), np.zeros(1)
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
    return Front(space, total, loss, _trace(steps, order, len(total)), slack)


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

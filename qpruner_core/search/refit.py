"""The default strategy: predicted front, measured, refitted, solved again.

Every proposal starts from all that is known. A `Surrogate` is fitted to the measured plans around
the sensitivities; the front is solved exactly for its expected costs and for a few draws of what
it believes; neighbours of the best are looked at; and the plan with the greatest expected gain in
hypervolume is proposed. Plans under way count as measured with the value expected of them, so that
several workers get different plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from qpruner_core.search.allocator import Floats, Integers, Situation
from qpruner_core.search.improvement import expected_gain
from qpruner_core.search.knapsack import solve
from qpruner_core.search.pareto import Point
from qpruner_core.search.seeding import order_points
from qpruner_core.search.space import Code, SearchSpace
from qpruner_core.search.surrogate import Surrogate

N_FRONT = 256
"""Points taken of every solved front."""
N_DRAWS = 3
"""Fronts solved for draws of what is believed."""
N_BEST = 8
"""Candidates whose neighbours are looked at, in every round."""
N_ROUNDS = 3
"""Rounds of neighbours."""
MAX_STATES = 2048
"""States of a knapsack kept here: a coarser front will do where hundreds are solved."""

MAX_SWAPPED = 64
"""Parameters up to which exchanges of two are looked at: they grow with the square."""


class Refit:
    """Front, refit, front again (see the module).

    Args:
        draws: Fronts solved for draws of the believed costs; 0 for the expected ones alone.
        rounds: Rounds in which neighbours of the best candidates are looked at; 0 for none.
    """

    def __init__(self, draws: int = N_DRAWS, rounds: int = N_ROUNDS) -> None:
        self._draws, self._rounds = draws, rounds

    def propose(self, situation: Situation) -> Code | None:
        """Return the plan of greatest expected gain (see `Allocator`)."""
        # Matrices here are small: threads only wait for each other, and on a busy machine long.
        with threadpool_limits(1, user_api="blas"):
            return self._best(situation)

    def _best(self, situation: Situation) -> Code | None:
        space = situation.space
        rng = np.random.default_rng(situation.seed)
        surrogate = _fitted(situation)
        if surrogate is None:
            return _middle(situation)
        believing = surrogate.believing(_options(space, situation.pending))
        pool = _Pool(situation, believing)
        pool.add_front(situation.prior)
        pool.add_front(surrogate.costs())
        for _ in range(self._draws):
            pool.add_front(surrogate.sampled_costs(rng))
        pool.add(_neighbours(space, _measured_front(situation)))
        for _ in range(self._rounds):
            pool.add(_neighbours(space, pool.best(N_BEST)))
        best = pool.best(1)
        return best[0] if best else None


class _Pool:
    """Candidates of one proposal: within the budget, not closed, each once and scored once."""

    def __init__(self, situation: Situation, surrogate: Surrogate) -> None:
        self._situation, self._surrogate = situation, surrogate
        self._seen: set[Code] = set(situation.closed)
        self._units = np.arange(len(situation.space.units))
        self._bytes = np.array(situation.space.unit_bytes, dtype=np.int64)
        self._measured: list[Point] = [(m.cost, m.badness) for m in situation.measured]
        self._constant = _constant(situation)
        self._reference = self._corner()
        self._codes: list[Code] = []
        self._gains = np.empty(0)

    def add(self, codes: Iterable[Code]) -> None:
        """Take in plans and score those that are new."""
        space, situation = self._situation.space, self._situation
        new = set(map(space.canonical, codes)) - self._seen
        self._seen |= new
        ordered = sorted(new)
        chosen = _options(space, ordered)
        sizes = space.fixed_bytes + self._bytes[self._units, chosen].sum(axis=1)
        inside = np.flatnonzero(sizes <= situation.budget_bytes)
        if not len(inside):
            return
        chosen = chosen[inside]
        mean, deviation = self._surrogate.predict(chosen)
        costs = self._constant + situation.sizes[self._units, chosen].sum(axis=1)
        gains = expected_gain(costs, mean, deviation, self._measured, self._reference)
        self._codes += [ordered[int(index)] for index in inside]
        self._gains = np.append(self._gains, gains)

    def add_front(self, costs: Floats) -> None:
        """Add points of the exact front for some costs."""
        situation = self._situation
        front = solve(situation.space, costs, situation.sizes, MAX_STATES)
        sizes = situation.space.fixed_bytes + self._bytes[self._units, front.options].sum(axis=1)
        inside = np.flatnonzero(sizes <= situation.budget_bytes)
        self.add(front.code(int(index)) for index in inside[_spread(front.weight_bytes[inside])])

    def best(self, n_best: int) -> list[Code]:
        """Return the candidates of greatest expected gain, best first."""
        order = np.argsort(-self._gains, kind="stable")[:n_best]
        return [self._codes[int(index)] for index in order]

    def _corner(self) -> Point:
        """Return the corner beyond which nothing counts: somewhat beyond what is measured or could
        be proposed.
        """
        situation = self._situation
        largest = self._constant + float(situation.sizes.max(axis=1).sum())
        if np.array_equal(situation.sizes, self._bytes):
            largest = min(largest, float(situation.budget_bytes))
        inside = [value for cost, value in self._measured if cost <= largest]
        values = inside or [value for _, value in self._measured]
        worst = max(values) + 0.1 * (max(values) - min(values))
        return (1.001 * largest, worst)


def _middle(situation: Situation) -> Code | None:
    """Return a plan from the middle of the predicted front, where nothing can be learned yet."""
    points = order_points(
        solve(situation.space, situation.prior), situation.budget_bytes, len(situation.closed) + 3
    )
    untried = [code for code in points if code not in situation.closed]
    return untried[min(2, len(untried) - 1)] if untried else None


def _fitted(situation: Situation) -> Surrogate | None:
    """Return the surrogate of the measured plans; None where they are fewer than two."""
    if len(situation.measured) < 2:
        return None
    chosen = _options(situation.space, [m.code for m in situation.measured])
    badness = np.array([m.badness for m in situation.measured])
    return Surrogate(situation.prior, chosen, badness)


def _options(space: SearchSpace, codes: Sequence[Code]) -> Integers:
    """Return the options of plans, ``(n_plans, n_units)``."""
    found: NDArray[np.int64] = np.array(
        [space.option_indices(code) for code in codes], dtype=np.int64
    ).reshape(len(codes), len(space.units))
    return found


def _constant(situation: Situation) -> float:
    """Return what a plan costs beyond the sum of its units: the median, as times are noisy."""
    chosen = _options(situation.space, [m.code for m in situation.measured])
    sums = situation.sizes[np.arange(chosen.shape[1]), chosen].sum(axis=1)
    return float(np.median(np.array([m.cost for m in situation.measured]) - sums))


def _spread(costs: Integers) -> Integers:
    """Return indices of points spread evenly over ascending costs, both ends included."""
    if len(costs) <= N_FRONT:
        return np.arange(len(costs))
    targets = np.linspace(costs[0], costs[-1], N_FRONT)
    return np.unique(np.searchsorted(costs, targets, side="right") - 1)


def _measured_front(situation: Situation) -> list[Code]:
    """Return the codes of the measured front."""
    front: list[Code] = []
    best = np.inf
    for m in sorted(situation.measured, key=lambda m: (m.cost, m.badness)):
        if m.badness < best:
            front.append(m.code)
            best = m.badness
    return front


def _neighbours(space: SearchSpace, codes: Iterable[Code]) -> Iterable[Code]:
    """Give the plans that move one parameter by one, or raise one and lower another."""
    sizes = list(space.parameters.values())
    for code in codes:
        raised = [_moved(code, i, 1) for i, n in enumerate(sizes) if code[i] + 1 < n]
        lowered = [i for i in range(len(code)) if code[i] > 0]
        yield from raised
        yield from (_moved(code, i, -1) for i in lowered)
        if len(code) <= MAX_SWAPPED:
            yield from (_moved(up, i, -1) for up in raised for i in lowered if up[i] == code[i])


def _moved(code: Code, index: int, by: int) -> Code:
    return (*code[:index], code[index] + by, *code[index + 1 :])

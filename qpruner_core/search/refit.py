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
from qpruner_core.search.knapsack import Front, solve
from qpruner_core.search.pareto import Point
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
        pool = _Pool(situation)
        pool.add_front(situation.prior)
        if surrogate is None:
            return pool.middle()
        pool.add_front(surrogate.costs())
        for _ in range(self._draws):
            pool.add_front(surrogate.sampled_costs(rng))
        pool.add(_neighbours(space, _measured_front(situation)))
        believing = surrogate.believing(_options(space, situation.pending))
        for _ in range(self._rounds):
            pool.add(_neighbours(space, pool.best(believing, N_BEST)))
        best = pool.best(believing, 1)
        return best[0] if best else None


class _Pool:
    """Candidates of one proposal: within the budget, not closed, each once."""

    def __init__(self, situation: Situation) -> None:
        self._situation = situation
        self._codes: list[Code] = []
        self._seen: set[Code] = set()
        measured: list[Point] = [(m.cost, m.badness) for m in situation.measured]
        self._measured = measured

    def add(self, codes: Iterable[Code]) -> None:
        space, situation = self._situation.space, self._situation
        for code in map(space.canonical, codes):
            if code in self._seen or code in situation.closed:
                continue
            self._seen.add(code)
            if space.code_bytes(code) <= situation.budget_bytes:
                self._codes.append(code)

    def add_front(self, costs: Floats) -> None:
        """Add points of the exact front for some costs."""
        situation = self._situation
        front = solve(situation.space, costs, situation.sizes, MAX_STATES)
        self.add(front.code(index) for index in _spread(front))

    def middle(self) -> Code | None:
        """Return the candidate in the middle of the predicted front."""
        return self._codes[len(self._codes) // 2] if self._codes else None

    def best(self, surrogate: Surrogate, n_best: int) -> list[Code]:
        """Return the candidates of greatest expected gain, best first."""
        if not self._codes:
            return []
        situation = self._situation
        chosen = _options(situation.space, self._codes)
        costs = situation.sizes[np.arange(chosen.shape[1]), chosen].sum(axis=1).astype(float)
        mean, deviation = surrogate.predict(chosen)
        constant = _constant(situation)
        gains = expected_gain(
            costs + constant, mean, deviation, self._measured, self._reference(costs + constant)
        )
        order = np.argsort(-gains, kind="stable")[:n_best]
        return [self._codes[int(index)] for index in order]

    def _reference(self, costs: Floats) -> Point:
        """Return the corner beyond which nothing counts: somewhat beyond all that is known."""
        values = [value for _, value in self._measured]
        worst = max(values) + 0.1 * (max(values) - min(values))
        largest = max(float(costs.max()), *(cost for cost, _ in self._measured))
        return (1.001 * largest, worst)


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
    """Return what a plan costs beyond the sum of its units."""
    measured = situation.measured[0]
    options = situation.space.option_indices(measured.code)
    return measured.cost - float(situation.sizes[np.arange(len(options)), options].sum())


def _spread(front: Front) -> list[int]:
    """Return indices of points spread evenly over the sizes of a front, both ends included."""
    if len(front) <= N_FRONT:
        return list(range(len(front)))
    targets = np.linspace(front.weight_bytes[0], front.weight_bytes[-1], N_FRONT)
    nearest = np.searchsorted(front.weight_bytes, targets, side="right") - 1
    return [int(index) for index in np.unique(nearest)]


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

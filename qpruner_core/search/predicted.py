"""The predicted front, measured: what the sensitivities alone are worth."""

from __future__ import annotations

from qpruner_core.search.allocator import Situation
from qpruner_core.search.knapsack import solve
from qpruner_core.search.seeding import order_seeds
from qpruner_core.search.space import Code


class Predicted:
    """Points of the predicted front, dense below the budget, in a fixed order."""

    def propose(self, situation: Situation) -> Code | None:
        """Return the first point that is not closed (see `Allocator`)."""
        front = solve(situation.space, situation.prior, situation.sizes)
        n_points = max(situation.n_trials, 1)
        points = order_seeds(situation.space, front.codes(), situation.budget_bytes, n_points)
        return next((code for code in points if code not in situation.closed), None)

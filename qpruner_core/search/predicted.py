"""The predicted front, measured: what the sensitivities alone are worth."""

from __future__ import annotations

from qpruner_core.search.allocator import Situation
from qpruner_core.search.knapsack import solve
from qpruner_core.search.seeding import order_points
from qpruner_core.search.space import Code


class Predicted:
    """Points of the predicted front in the order of what each adds to it, by prediction."""

    def propose(self, situation: Situation) -> Code | None:
        """Return the first point that is not closed (see `Allocator`)."""
        front = solve(situation.space, situation.prior, situation.sizes)
        points = order_points(front, situation.budget_bytes, len(situation.closed) + 1)
        return next((code for code in points if code not in situation.closed), None)

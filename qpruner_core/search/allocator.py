"""What a strategy of our own is told, and what it answers: the second kind of catalogue entry
beside Optuna's samplers.

An allocator decides from everything that is known: predicted costs, measured plans and plans that
other workers are measuring right now. It keeps nothing between two questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qpruner_core.search.space import Code, SearchSpace

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCode:
    """A plan of the space and what it was measured to be worth."""

    code: Code
    badness: float
    """What the objective minimises: loss in nats per token, or accuracy with its sign turned."""
    cost: float
    """What is weighed against it, in the unit of `Situation.sizes`: packed bytes, or as
    `SearchSpec.cost` says."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Situation:
    """All that a proposal may depend on."""

    space: SearchSpace
    prior: Floats
    """Predicted loss increase of every unit at every option, ``(n_units, n_options)``; nats."""
    sizes: Integers
    """Cost of every unit at every option, ``(n_units, n_options)``: bytes, or what the search
    weighs against quality in integers, such as nanoseconds. Plan costs are their sum plus a
    constant."""
    budget_bytes: int
    """Packed bytes that no proposal exceeds."""
    measured: Sequence[MeasuredCode]
    """Finished trials and baselines of the space, in no particular order."""
    pending: Sequence[Code]
    """Plans that are being measured."""
    closed: frozenset[Code]
    """All plans that must not be proposed: measured, pending, failed and stopped ones."""
    n_trials: int
    """Trials the search is to have."""
    number: int
    """Number of the trial that is asked for, from 0."""
    seed: int
    """Seed of everything random for this number."""


class Allocator(Protocol):
    """A strategy of our own."""

    def propose(self, situation: Situation) -> Code | None:
        """Return a plan within the budget that is not closed; None when it has no wish, so that an
        untried neighbour of the predicted front is taken.
        """
        ...

"""Successive halving on evaluation text: a plan that is clearly worse is not measured to the end.

Every plan answers the same sequences in the same order, so a plan is compared with what others
lost on the very sequences it has answered. It is stopped when some plan that costs no more is
better by so much that chance would hardly do it: the mean paired difference exceeds `TAIL` of
Student's t with n - 1 degrees of freedom, times its standard error (`search.noise`). See
docs/decisions/0017-halving-and-noise.md.

Successive halving (Jamieson and Talwalkar, arXiv:1502.07943) keeps the better half of a fixed set
in every round. A search has no such set, as plans come one by one, and its aim is a front, so a
plan is compared with those it would have to beat to stand on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.special import ndtr, stdtrit

from qpruner_core.search.noise import PairedDifference, paired_error

STANDARD_ERRORS = 3.0
"""Standard errors by which a plan has to be worse, were there many sequences."""
TAIL = float(ndtr(-STANDARD_ERRORS))
"""Chance that a plan which is no worse than one other is stopped because of it, in one rung:
0.00135."""
FEWEST = 8
"""Sequences of the shortest rung; of fewer, the spread of the differences is hardly known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A plan that was measured on all of the text."""

    name: str
    """As told to the person."""
    cost: float
    """What it costs, as the search weighs it."""
    losses: Sequence[float]
    """Loss of every sequence; nats per token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """That a plan is dominated, and by how much."""

    rival: Rival
    difference: PairedDifference
    """How much worse the plan is."""
    n_sequences: int
    """Sequences of the whole text."""

    @property
    def words(self) -> str:
        """What is kept as the reason."""
        found = self.difference
        return (
            f"dominated on {found.n_sequences} of {self.n_sequences} sequences by "
            f"{self.rival.name}, which costs no more: {found.mean:.4f} nats per token worse, "
            f"standard error {found.error:.4f}"
        )


def rung_ends(n_sequences: int, rungs: int) -> tuple[int, ...]:
    """Return how many sequences have been answered at the end of every rung, ascending; the last
    is all of them.

    Rungs of fewer sequences than `FEWEST` are left out.
    """
    ends = (-(-n_sequences // 2**halvings) for halvings in range(rungs - 1, 0, -1))
    return (*sorted({end for end in ends if FEWEST <= end < n_sequences}), n_sequences)


def critical(n_sequences: int) -> float:
    """Return the standard errors beyond which a difference is taken for real: 3 for very many
    sequences, 4.5 for 8.
    """
    return float(stdtrit(n_sequences - 1, 1.0 - TAIL))


def dominated(
    losses: Sequence[float], cost: float, rivals: Iterable[Rival], n_sequences: int
) -> Verdict | None:
    """Return why a plan need not be measured further; None where it may stand on the front.

    Args:
        losses: What it lost on the first sequences, at least `FEWEST`; nats per token.
        cost: What it costs.
        rivals: Plans that were measured on all of the text.
        n_sequences: Sequences of the whole text.
    """
    limit = critical(len(losses))
    worst: Verdict | None = None
    for rival in rivals:
        if rival.cost > cost or len(rival.losses) < len(losses):
            continue
        found = paired_error(losses, rival.losses[: len(losses)])
        is_worse = found.mean > 0.0 and found.mean > limit * found.error
        if is_worse and (worst is None or found.mean > worst.difference.mean):
            worst = Verdict(rival=rival, difference=found, n_sequences=n_sequences)
    return worst

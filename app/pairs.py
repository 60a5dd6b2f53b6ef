"""Two plans on the same items: their difference with the error that pairing leaves.

Both plans answered the same items, so what makes an item hard is in both and cancels; the error of
the difference is that of the differences item by item, not the sum of both plans' errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

from qpruner_core.domain.metrics import Metrics, TaskResult
from qpruner_core.domain.paired import pairable
from qpruner_core.search.noise import PairedDifference, paired_error


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDifference:
    """How much more often one plan is right than another, item by item."""

    mean: float
    """Mean accuracy of the first minus that of the second; in [-1, 1]. The mean over tasks, as
    `Metrics.accuracy`."""
    error: float
    """Standard error of that difference, tasks taken as independent; >= 0."""
    n_items: int
    """Items that both answered."""
    n_changed: int
    """Items of which exactly one of both was right."""


def losses(a: Sequence[float] | None, b: Sequence[float] | None) -> PairedDifference | None:
    """Return how much worse ``a`` is than ``b`` on the same sequences; None where fewer than two
    of both are kept, or not as many of one as of the other.
    """
    if a is None or b is None or len(a) != len(b) or len(a) < 2:
        return None
    return paired_error(a, b)


def answers(a: Metrics, b: Metrics) -> AnswerDifference | None:
    """Return how ``a`` answers against ``b``; None where no answers item by item are kept of the
    same items.
    """
    shared = [
        (one, other)
        for name, one in a.tasks.items()
        if (other := b.tasks.get(name)) is not None and pairable(one, other)
    ]
    if not shared:
        return None
    each = [paired_error(_right(one), _right(other)) for one, other in shared]
    error = sqrt(sum(pair.error**2 for pair in each)) / len(each)
    return AnswerDifference(
        mean=sum(pair.mean for pair in each) / len(each),
        error=error if error < inf else 0.5,
        n_items=sum(pair.n_sequences for pair in each),
        n_changed=sum(
            x != y
            for one, other in shared
            for x, y in zip(one.correct, other.correct, strict=True)
        ),
    )


def _right(result: TaskResult) -> tuple[float, ...]:
    return tuple(float(answer) for answer in result.correct)

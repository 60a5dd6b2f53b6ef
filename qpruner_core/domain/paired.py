"""Whether two measured models answer differently: a paired test on the same items."""

from __future__ import annotations

from dataclasses import dataclass

from qpruner_core.domain.metrics import Metrics, TaskResult

LEVEL = 0.05
"""Two plans are called different where chance alone would give as much less often than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """What two models answered on the same items."""

    n_items: int
    """Items that both answered; 0 where there are none."""
    first_only: int
    """Items that only the first answered rightly."""
    second_only: int
    """Items that only the second answered rightly."""
    p_value: float
    """Two-sided exact McNemar test: how likely items that split unevenly at least as far would be,
    were both models equally good; in (0, 1]."""

    @property
    def difference(self) -> float:
        """Accuracy of the first minus that of the second, over all items together; in [-1, 1]."""
        return (self.first_only - self.second_only) / self.n_items if self.n_items else 0.0

    @property
    def differs(self) -> bool:
        """Whether the two are called different."""
        return self.p_value < LEVEL


def paired(first: Metrics, second: Metrics) -> Paired | None:
    """Compare two models on the items of the tasks that both answered.

    Items are paired by position; tasks that are not `pairable` are left out. None where nothing
    can be paired.

    Reference: McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", Psychometrika 12, 1947; exact by the binomial distribution.
    """
    pairs = [
        pair
        for name, result in first.tasks.items()
        if (other := second.tasks.get(name)) is not None and pairable(result, other)
        for pair in zip(result.correct, other.correct, strict=True)
    ]
    if not pairs:
        return None
    first_only = sum(a and not b for a, b in pairs)
    second_only = sum(b and not a for a, b in pairs)
    return Paired(
        n_items=len(pairs),
        first_only=first_only,
        second_only=second_only,
        p_value=mcnemar(first_only, second_only),
    )


def pairable(first: TaskResult, second: TaskResult) -> bool:
    """Whether two results answer the same items, item by item: those of one hash. Older records
    state none; two of them pair where they kept as many answers.
    """
    n_answers = len(first.correct)
    return first.items == second.items and 0 < n_answers == len(second.correct)


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the two-sided p-value of the exact McNemar test; in (0, 1].

    Args:
        first_only: Items that only the first answered rightly; >= 0.
        second_only: Items that only the second answered rightly; >= 0.
    """
    n, least = first_only + second_only, min(first_only, second_only)
    tail = ways = 1
    for k in range(least):  # ways becomes n choose k + 1, by one small product
        ways = ways * (n - k) // (k + 1)
        tail += ways
    # As whole numbers: thousands of changed items have more ways than a float can hold.
    return min(1.0, (2 * tail) / (1 << n))

"""Whether plans answer differently, in sentences: the exact McNemar test on the same items."""

from __future__ import annotations

from collections.abc import Sequence

from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.paired import LEVEL, pairable, paired


def p_words(p_value: float) -> str:
    """Return a p-value in words, such as ``p = 0.66``."""
    if p_value < 0.001:
        return "p < 0.001"
    return f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"


def against(letter: str, other: Metrics, first: Metrics) -> str:
    """Return what the items that both answered say of a plan against plan A.

    Args:
        letter: Of the plan.
        other: What was measured of it.
        first: What was measured of plan A.
    """
    found = paired(other, first)
    if found is None:
        return (
            f"**{letter} against A**: not compared, as no answers to the same items are kept of "
            f"both."
        )
    verdict = f"{'' if found.differs else 'not '}called different by accuracy"
    words = (
        f"**{letter} against A**: {letter} answers {_items(found.first_only)} rightly that A does "
        f"not, A {found.second_only:,} the other way, of {found.n_items:,}: "
        f"{p_words(found.p_value)}, **{verdict}**."
    )
    missing = _unpaired(other, first)
    return (
        f"{words} Left out, as not of the same items: {', '.join(missing)}." if missing else words
    )


def not_of_the_same_items(letter: str) -> str:
    """Return why a plan of other items is not compared."""
    return f"**{letter} against A**: not compared, as its run scores other items than that of A."


def near_best(best: Metrics, others: Sequence[Metrics]) -> str:
    """Return how many other plans are not called different from the best one; empty without
    answers to compare.
    """
    tests = [found for other in others if (found := paired(best, other)) is not None]
    alike = sum(not found.differs for found in tests)
    if not tests:
        return ""
    if not alike:
        return " By its answers it is called different from every other plan within the budget."
    return (
        f" By its answers it is not called different from {alike} of {len(tests)} other "
        f"plan{'' if len(tests) == 1 else 's'} within the budget (exact McNemar test, "
        f"p ≥ {LEVEL:g})."
    )


def _items(count: int) -> str:
    return f"{count:,} item{'' if count == 1 else 's'}"


def _unpaired(first: Metrics, second: Metrics) -> list[str]:
    """Return the tasks of either that the test leaves out."""
    names = sorted({*first.tasks, *second.tasks})
    return [name for name in names if not _is_paired(first, second, name)]


def _is_paired(first: Metrics, second: Metrics, name: str) -> bool:
    if name not in first.tasks or name not in second.tasks:
        return False
    return pairable(first.tasks[name], second.tasks[name])

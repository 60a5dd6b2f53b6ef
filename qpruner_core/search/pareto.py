"""What is worth taking: non-dominated points, their hypervolume, and the best under a budget.

Pairs are ``(bytes, badness)`` and both are minimised; accuracy enters with its sign turned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.record import Trial
from qpruner_core.search.costs import cost_of

Point = tuple[float, float]


def badness(metrics: Metrics, objective: str) -> float:
    """Return what an objective minimises: the loss, or the accuracy with its sign turned."""
    return metrics.loss if objective == "loss" else -metrics.accuracy


def non_dominated(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other point beats, by ascending first coordinate.

    A point is dominated when another is no worse in both coordinates and better in one; of equal
    points the first stays.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i], i)):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """Return the area that the points dominate below a reference point, both coordinates
    minimised.
    """
    inside = [p for p in points if p[0] < reference[0] and p[1] < reference[1]]
    front = [inside[i] for i in non_dominated(inside)]
    ends = [*(x for x, _ in front), reference[0]][1:]
    return float(
        sum((end - x) * (reference[1] - y) for (x, y), end in zip(front, ends, strict=True))
    )


def front_numbers(
    trials: Iterable[Trial], objective: str, cost: str = "weight_bytes"
) -> tuple[int, ...]:
    """Return the numbers of the non-dominated among measured trials and baselines, by ascending
    cost.

    Args:
        trials: Measured or not.
        objective: As in `SearchSpec.objective`.
        cost: As in `SearchSpec.cost`.
    """
    measured = [
        (trial.number, (cost_of(trial.metrics, cost), badness(trial.metrics, objective)))
        for trial in trials
        if trial.metrics
    ]
    return tuple(measured[i][0] for i in non_dominated([point for _, point in measured]))


def best_measured(trials: Iterable[Trial], objective: str, budget_bytes: int) -> Trial | None:
    """Return the best measured trial within a budget, the smaller of equals, None without one."""
    points = [
        (badness(trial.metrics, objective), trial.metrics.weight_bytes, trial)
        for trial in trials
        if trial.metrics is not None and trial.metrics.weight_bytes <= budget_bytes
    ]
    return min(points, key=lambda point: point[:2])[2] if points else None

"""When a search ends before its last trial: the measured front has not moved for long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qpruner_core.domain.record import Trial
from qpruner_core.search.costs import cost_of
from qpruner_core.search.pareto import Point, badness, non_dominated


def unmoved(baselines: Iterable[Trial], trials: Sequence[Trial], objective: str, cost: str) -> int:
    """Return how many finished trials in a row, up to the last, have not moved the front.

    Args:
        baselines: What was measured before the first trial.
        trials: All trials of the study by number; running ones are passed over, stopped and failed
            ones count as having moved nothing.
        objective: As in `SearchSpec.objective`.
        cost: As in `SearchSpec.cost`.
    """
    front = _front([_point(t, objective, cost) for t in baselines if t.metrics])
    count = 0
    for trial in trials:
        if trial.state == "running":
            continue
        count += 1
        if trial.metrics is None:
            continue
        moved = _front([*front, _point(trial, objective, cost)])
        if moved != front:
            front, count = moved, 0
    return count


def out_of_patience(n_unmoved: int, n_finished: int, patience: int, n_trials: int) -> str:
    """Return why a search ends now; empty where it goes on.

    Args:
        n_unmoved: As `unmoved` says.
        n_finished: Trials that are no longer running.
        patience: As in `SearchSpec.patience`.
        n_trials: Trials that were asked for.
    """
    if not patience or n_unmoved < patience or n_finished >= n_trials:
        return ""
    return (
        f"stopped after {n_finished} of {n_trials} trials: the measured front has not moved for "
        f"{n_unmoved} trials"
    )


def _point(trial: Trial, objective: str, cost: str) -> Point:
    if trial.metrics is None:
        raise ValueError(f"trial {trial.number} was not measured")
    return (cost_of(trial.metrics, cost), badness(trial.metrics, objective))


def _front(points: Sequence[Point]) -> list[Point]:
    return [points[i] for i in non_dominated(points)]

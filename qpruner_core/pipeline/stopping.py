"""The end of a search: before its last trial where the front has not moved for long, and what a
person should know of it then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import Trial
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import InfeasibleBudgetError, NotReadyError, QPrunerError
from qpruner_core.search.costs import cost_of
from qpruner_core.search.noise import too_few_items, too_small
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
        x, y = _point(trial, objective, cost)
        if not any(at <= x and bad <= y for at, bad in front):
            front, count = _front([*front, (x, y)]), 0
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


def nothing_measured(trials: Sequence[Trial]) -> QPrunerError:
    """Return why none of the trials can be chosen."""
    failed = [trial for trial in trials if trial.state == "failed"]
    if failed and not any(trial.metrics for trial in trials):
        return NotReadyError(
            f"None of the {len(failed)} plans that were tried could be measured. The first failed "
            f"with: {failed[0].reason}"
        )
    return InfeasibleBudgetError(
        "No plan that was measured fits the memory budget. Raise the budget, or measure more "
        "trials."
    )


def remarks(
    spec: RunSpec,
    trials: Sequence[Trial],
    front: Sequence[Trial],
    losses_of: Callable[[PrecisionPlan], Sequence[float]],
    ending: str,
) -> tuple[str, ...]:
    """Return what a person should know of a search beside its numbers.

    Args:
        spec: What the run asks for.
        trials: All trials, without baselines.
        front: The measured front, by ascending cost.
        losses_of: Returns the loss of every evaluation sequence under a plan.
        ending: Why the search ended early, or empty.
    """
    found = [f"The search {ending}."] if ending else []
    reused = sum(trial.metrics is not None and bool(trial.metrics.measured_in) for trial in trials)
    if reused:
        found.append(
            f"{reused} of {len(trials)} trials were measured by an earlier search of this run and "
            f"taken over. They count as trials; ask for {reused} more to measure as many new "
            f"plans."
        )
    if spec.search.recover_steps:
        found.append(
            f"Every plan was trained for {spec.search.recover_steps} steps before it was "
            f"measured. Its bytes are those of the packed weights, without the adapter."
        )
    if spec.search.cost == "training_memory":
        found.append("Training memory is estimated for every plan, not measured.")
    if spec.search.objective == "loss":
        told = too_small([losses_of(trial.plan) for trial in front], spec.data.sequence_length)
    else:
        told = too_few_items([_wrong(trial) for trial in front])
    return (*found, told) if told else tuple(found)


def _wrong(trial: Trial) -> list[float]:
    """Return 1 for every item of the tasks that was answered wrongly, 0 for every other."""
    results = trial.metrics.tasks.values() if trial.metrics is not None else ()
    return [float(not answer) for result in results for answer in result.correct]


def _point(trial: Trial, objective: str, cost: str) -> Point:
    if trial.metrics is None:
        raise ValueError(f"trial {trial.number} was not measured")
    return (cost_of(trial.metrics, cost), badness(trial.metrics, objective))


def _front(points: Sequence[Point]) -> list[Point]:
    return [points[i] for i in non_dominated(points)]

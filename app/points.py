"""What a run puts on the accuracy-versus-memory front: measured plans, baselines and the result
of recovery.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app import wording
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.errors import NotReadyError
from qpruner_core.search.costs import cost_of
from qpruner_core.search.pareto import badness, non_dominated

PLAN, BASELINE, REFERENCE = "plan", "baseline", "reference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured candidate of one run."""

    run_id: str
    run_name: str
    number: int | None
    """Number of the trial; None for references that carry no plan of the search."""
    name: str
    """Name on screen, such as ``QPruner-2`` or ``trial 7``."""
    kind: str
    """``"plan"``, ``"baseline"`` or ``"reference"``."""
    metrics: Metrics
    plan: PrecisionPlan | None
    pruned: float | None = None
    """Pruning ratio of the model that was measured, its mean over layers in a joint search; in
    [0, 1), None where that is not known."""

    @property
    def key(self) -> str:
        """What a click sends and the address carries: ``"<run>:<number>"``."""
        return f"{self.run_id}:{self.number}"


def trials_of(record: RunRecord) -> tuple[Trial, ...]:
    """Return baselines and trials of a run, in that order; empty before its search."""
    return () if record.search is None else (*record.search.baselines, *record.search.trials)


def trial_name(number: int | None) -> str:
    """Return how a trial is called that has no name of its own."""
    return f"trial {number}"


def ratio_of(record: RunRecord, plan: PrecisionPlan | None) -> float | None:
    """Return the pruning ratio of the model that a plan was measured on, its mean over layers in a
    joint search.
    """
    measured = record.quantize
    if plan is not None and plan.levels and measured is not None and measured.levels:
        return sum(measured.levels[level].ratio for level in plan.levels) / len(plan.levels)
    return record.prune.spec.ratio if record.prune is not None else None


def of_trials(record: RunRecord, trials: Iterable[Trial]) -> list[Point]:
    """Return the measured ones among trials as points."""
    run_name = record.spec.name or record.spec.model.source
    return [
        Point(
            run_id=record.run_id,
            run_name=run_name,
            number=trial.number,
            name=trial.name or trial_name(trial.number),
            kind=BASELINE if trial.number < 0 else PLAN,
            metrics=trial.metrics,
            plan=trial.plan,
            pruned=ratio_of(record, trial.plan),
        )
        for trial in trials
        if trial.metrics is not None
    ]


def of_run(record: RunRecord, trials: Iterable[Trial] | None = None) -> list[Point]:
    """Return all points of a run: the dense model, baselines, trials, and the recovered model.

    Args:
        record: The run.
        trials: What its search has come to, where that is not finished; None for what the record
            holds.
    """
    found = of_trials(record, trials_of(record) if trials is None else trials)
    return found + references(record, found)


def references(record: RunRecord, found: Iterable[Point]) -> list[Point]:
    """Return what stands beside the plans of a run: its dense model, and the recovered one.

    Args:
        record: The run.
        found: Its plans, of which one was recovered.
    """
    recovered = record.recover if record.recover and record.recover.losses else None
    trial = recovered.spec.trial if recovered is not None else None
    name = next((point.name for point in found if point.number == trial), "plan")
    reference = [
        ("dense, 16 bit", record.prune.before if record.prune else None, 0.0),
        (f"recovered {name}", recovered.after if recovered is not None else None, None),
    ]
    return [
        Point(
            run_id=record.run_id,
            run_name=record.spec.name or record.spec.model.source,
            number=None,
            name=words,
            kind=REFERENCE,
            metrics=metrics,
            plan=None,
            pruned=pruned,
        )
        for words, metrics, pruned in reference
        if metrics is not None
    ]


def loss_at_16_bit(record: RunRecord) -> float:
    """Return the held-out loss that predictions start from: of the pruned model at 16 bit.

    The same suite measured it as every trial. Sensitivities come from calibration text, so that
    only their increases are taken over.
    """
    return record.prune.after.loss if record.prune is not None else 0.0


def across(point: Point, cost: str) -> float | None:
    """Return what a point costs, as in `SearchSpec.cost`; None where that was not measured."""
    try:
        return cost_of(point.metrics, cost)
    except NotReadyError:
        return None


def front_of(points: Sequence[Point], objective: str, cost: str = "weight_bytes") -> list[Point]:
    """Return the non-dominated among points that carry a plan, by ascending cost."""
    carried = [(point, across(point, cost)) for point in points if point.plan is not None]
    known = [(point, at) for point, at in carried if at is not None]
    pairs = [(at, badness(point.metrics, objective)) for point, at in known]
    return [known[index][0] for index in non_dominated(pairs)]


def best_under(points: Sequence[Point], budget_bytes: int, objective: str) -> Point | None:
    """Return the best measured plan within a budget; None when nothing measured fits.

    Of equally good ones the smaller, and a trial before a baseline: ``QPruner-3`` is another name
    for the best trial of its kind, and one plan goes by one name on every page.
    """
    fitting = [p for p in points if p.plan is not None and p.metrics.weight_bytes <= budget_bytes]

    def order(point: Point) -> tuple[float, int, bool]:
        metrics = point.metrics
        return badness(metrics, objective), metrics.weight_bytes, point.kind == BASELINE

    return min(fitting, key=order, default=None)


def find(points: Iterable[Point], key: str | None) -> Point | None:
    """Return the point of that key."""
    return next((point for point in points if point.key == key), None)


def hover(point: Point) -> str:
    """Return what a person reads over a point; every number is measured."""
    metrics = point.metrics
    tasks = (
        f"<br>accuracy {wording.percent(metrics.accuracy)} ± {100 * metrics.standard_error:.1f} "
        "points"
        if metrics.tasks or metrics.accuracy
        else ""
    )
    return (
        f"<b>{point.name}</b> · {point.run_name}<br>{wording.size(metrics.weight_bytes)}"
        f"<br>loss {wording.nats(metrics.loss)}{tasks}<br>measured on {metrics.device}"
    )

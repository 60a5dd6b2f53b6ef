"""What a command prints of a search: every trial in the document, front and remarks in lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qpruner_core.cli.report_evaluation import accuracy_words
from qpruner_core.domain.footprint import bits_per_weight, format_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.record import RunRecord, SearchOutcome, Trial
from qpruner_core.errors import NotReadyError
from qpruner_core.search.costs import cost_of

N_REASONS = 3
"""Plans that failed or were stopped and are named with their reasons; the others are counted."""


def search_document(found: SearchOutcome) -> dict[str, Any]:
    """Return what was measured; a cost that is estimated says so in its name."""
    return {
        "budget_bytes": found.budget_bytes,
        "objective": found.spec.objective,
        "cost": found.spec.cost,
        "baselines": [trial_document(trial) for trial in found.baselines],
        "trials": [trial_document(trial) for trial in found.trials],
        "front": list(found.front),
        "chosen": found.chosen,
        "remarks": list(found.remarks),
    }


def trial_document(trial: Trial) -> dict[str, Any]:
    """Return one plan; one that failed or was stopped carries its reason instead of numbers."""
    document: dict[str, Any] = {
        "number": trial.number,
        "name": trial.name,
        "state": trial.state,
        "plan": dict(trial.plan.precisions),
    }
    if trial.plan.levels:
        document["levels"] = list(trial.plan.levels)
    if trial.metrics is None:
        return document | {"reason": trial.reason}
    return document | _numbers(trial.metrics)


def _numbers(metrics: Metrics) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "loss": metrics.loss,
        "accuracy": metrics.accuracy if metrics.tasks else None,
        "weight_bytes": metrics.weight_bytes,
        "standard_error": metrics.standard_error if metrics.tasks else None,
        "device": metrics.device,
    }
    if metrics.decode_tokens_per_second:
        numbers["seconds_per_token"] = 1.0 / metrics.decode_tokens_per_second
    if metrics.training_bytes is not None:
        numbers["estimated_training_bytes"] = metrics.training_bytes
    if metrics.measured_in:
        numbers["measured_in"] = metrics.measured_in
    return numbers


def search_lines(record: RunRecord) -> list[str]:
    """Return front, baselines, what was not measured to the end, and remarks for a person."""
    found, layout = record.search, record.layout
    if found is None or layout is None:
        return []
    lines = [f"budget {format_bytes(found.budget_bytes)}; measured front and baselines:"]
    for trial in (*found.baselines, *found.trials):
        shown = trial.number in (*found.front, found.chosen) or trial.name
        if trial.metrics is not None and shown:
            lines.append(_line(trial, trial.metrics, found, layout))
    lines.append("  (* on the front, > chosen)")
    for state in ("stopped", "failed"):
        lines += _without_numbers(state, (*found.baselines, *found.trials))
    return [*lines, *found.remarks]


def _line(trial: Trial, metrics: Metrics, found: SearchOutcome, layout: ModelLayout) -> str:
    marks = ("*" if trial.number in found.front else " ") + (
        ">" if trial.number == found.chosen else " "
    )
    return (
        f"  {marks} {_name(trial):<22}"
        f"{format_bytes(metrics.weight_bytes):>10}"
        f"{bits_per_weight(layout, metrics.weight_bytes):>7.2f} bits  "
        f"loss {metrics.loss:.4f}  accuracy {accuracy_words(metrics)}"
        f"{_cost_words(metrics, found.spec.cost)}"
    )


def _cost_words(metrics: Metrics, cost: str) -> str:
    try:
        at = cost_of(metrics, cost)
    except NotReadyError:
        return ""
    words = {
        "training_memory": f"  trains in {format_bytes(round(at))} (estimated)",
        "latency": f"  {1000.0 * at:.3g} ms/token",
    }
    return words.get(cost, "")


def _without_numbers(state: str, trials: Sequence[Trial]) -> list[str]:
    """Return how many plans ended in a state, and why the first did."""
    mine = [trial for trial in trials if trial.state == state]
    if not mine:
        return []
    words = "stopped on part of the text" if state == "stopped" else state
    lines = [f"{len(mine)} of {len(trials)} plans {words}:"]
    lines += [f"  {_name(trial)}: {trial.reason}" for trial in mine[:N_REASONS]]
    rest = len(mine) - N_REASONS
    return [*lines, f"  and {rest} more (see --json)"] if rest > 0 else lines


def _name(trial: Trial) -> str:
    return trial.name or f"trial {trial.number}"

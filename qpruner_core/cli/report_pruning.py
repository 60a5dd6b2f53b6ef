"""What a command prints of a pruning, and of criteria compared."""

from __future__ import annotations

from typing import Any

from qpruner_core.cli.report_evaluation import accuracy_words
from qpruner_core.domain.layout import KINDS, ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.record import ComparedPruning, Comparison, PruningOutcome, RunRecord


def pruning_document(record: RunRecord) -> dict[str, Any]:
    """Return what was asked for and what left, without what was measured."""
    if record.prune is None:
        return {}
    pruned = record.prune
    return {
        "ratio": pruned.spec.ratio,
        "criterion": pruned.spec.criterion,
        "scope": pruned.spec.scope,
        "shape": pruned.spec.shape,
        "iterations": pruned.spec.iterations,
        "compensation": pruned.spec.compensation,
        "layer_ratios": dict(pruned.spec.layer_ratios),
        "units": _units(record),
        "layers": pruned.layout.n_layers,
        "dropped_layers": list(pruned.plan.dropped_layers),
        "biases": list(pruned.plan.biases),
        "parameters_before": pruned.parameters_before,
        "parameters_after": pruned.parameters_after,
    }


def what_stays(record: RunRecord) -> str:
    """Return what stays of what lost something, for a person; empty where nothing did."""
    if record.prune is None:
        return ""
    found = [
        f"{n['after']:,} of {n['before']:,} {KINDS[kind]} stay"
        for kind, n in _units(record).items()
        if n["after"] != n["before"]
    ]
    return "; ".join([*found, *_layers_and_biases(record.prune)])


def comparison_document(found: Comparison) -> dict[str, Any]:
    """Return the rows of a comparison, least loss first."""
    return {
        "ratio": found.spec.ratio,
        "scope": found.spec.scope,
        "shape": found.spec.shape,
        "iterations": found.spec.iterations,
        "drop_layers": found.spec.drop_layers,
        "dense": _measured(found.dense),
        "rows": [
            {
                "criterion": row.criterion,
                "compensation": row.compensation,
                "parameters": row.parameters,
                **_measured(row.metrics),
                "seconds": round(row.seconds, 3),
            }
            for row in _ranked(found)
        ],
    }


def comparison_lines(found: Comparison) -> list[str]:
    """Return the rows of a comparison for a person, least loss first."""
    lines = [
        f"criteria at a pruning ratio of {found.spec.ratio:g}, {found.spec.scope} scope, "
        f"{found.spec.shape} shape:",
        f"  {'criterion':<18}{'compensation':<14}{'loss':>8}{'accuracy':>14}"
        f"{'parameters':>14}{'seconds':>9}",
        f"  {'(dense)':<32}{found.dense.loss:>8.4f}{accuracy_words(found.dense):>14}",
    ]
    return lines + [
        f"  {row.criterion:<18}{row.compensation:<14}{row.metrics.loss:>8.4f}"
        f"{accuracy_words(row.metrics):>14}{row.parameters:>14,}{row.seconds:>9.1f}"
        for row in _ranked(found)
    ]


def _units(record: RunRecord) -> dict[str, dict[str, int]]:
    """Return kind of unit -> how many there were and are, those of dropped layers counted too."""
    if record.prune is None:
        return {}
    dense = record.load.layout if record.load is not None else record.prune.layout
    before, after = _counts(dense), _counts(record.prune.layout)
    return {kind: {"before": n, "after": after.get(kind, 0)} for kind, n in before.items()}


def _counts(layout: ModelLayout) -> dict[str, int]:
    counts: dict[str, int] = {}
    for group in layout.groups:
        counts[group.kind] = counts.get(group.kind, 0) + group.n_units
    return counts


def _layers_and_biases(pruned: PruningOutcome) -> list[str]:
    found = []
    if pruned.plan.dropped_layers:
        found.append(f"layers dropped: {', '.join(map(str, pruned.plan.dropped_layers))}")
    if pruned.plan.biases:
        found.append(f"biases that compensate: {len(pruned.plan.biases)}")
    return found


def _ranked(found: Comparison) -> list[ComparedPruning]:
    return sorted(found.rows, key=lambda row: row.metrics.loss)


def _measured(metrics: Metrics) -> dict[str, Any]:
    return {
        "loss": metrics.loss,
        "accuracy": metrics.accuracy if metrics.tasks else None,
        "standard_error": metrics.standard_error if metrics.tasks else None,
        "weight_bytes": metrics.weight_bytes,
        "device": metrics.device,
    }

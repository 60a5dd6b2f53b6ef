"""Ratios by hand as a table to edit, and criteria that were measured side by side."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from app import wording, wording_pruning
from qpruner_core.domain.record import ComparedPruning, Comparison

RATIO = "Ratio, %"
BEST = "Best"
NOISE = 0.001
"""Losses that differ by less are not told apart; nats per token."""


def from_ratios(ratios: Mapping[str, float], n_layers: int) -> pd.DataFrame:
    """Return one row per layer with its ratio by hand in percent; empty where it is automatic."""
    given = [100.0 * ratios[str(i)] if str(i) in ratios else None for i in range(n_layers)]
    index = pd.RangeIndex(n_layers, name="layer")
    return pd.DataFrame({RATIO: pd.Series(given, dtype="float64")}, index=index)


def to_ratios(table: pd.DataFrame) -> dict[str, float]:
    """Return the ratios that an edited table states, as `PruningSpec.layer_ratios` keeps them."""
    stated = table[RATIO].dropna()
    return {str(layer): round(float(value) / 100.0, 4) for layer, value in stated.items()}


def best_of(comparison: Comparison) -> ComparedPruning:
    """Return the row of least loss; of equal ones the smaller model."""
    return min(comparison.rows, key=lambda row: (row.metrics.loss, row.parameters))


def compared(comparison: Comparison) -> pd.DataFrame:
    """Return one row per criterion and compensation, lowest loss first; all of it measured."""
    best = best_of(comparison)
    tasks = bool(comparison.dense.tasks)
    rows = []
    for row in sorted(comparison.rows, key=lambda row: row.metrics.loss):
        metrics = row.metrics
        rows.append(
            {
                BEST: "★" if row is best else "",
                "Criterion": wording_pruning.criterion(row.criterion),
                "Compensation": wording_pruning.COMPENSATIONS[row.compensation],
                "Parameters": wording.count(row.parameters),
                "Loss per token": wording.nats(metrics.loss, 4),
                "Against dense": f"{metrics.loss - comparison.dense.loss:+.4f} nats",
                **({"Accuracy": _accuracy(row, comparison)} if tasks else {}),
                "Time": wording.seconds(row.seconds),
            }
        )
    return pd.DataFrame(rows)


def too_close(comparison: Comparison) -> list[str]:
    """Return in sentences which rows differ too little from the best to rank them by it."""
    best = best_of(comparison).metrics
    found = [row.metrics for row in comparison.rows]
    said = []
    alike = sum(metrics.loss - best.loss < NOISE for metrics in found)
    if alike > 1:
        said.append(
            f"The first {alike} differ by less than {NOISE} nats per token: too little to call "
            "one of them the best."
        )
    error = best.standard_error
    near = sum(abs(metrics.accuracy - best.accuracy) <= error for metrics in found)
    if best.tasks and near > 1:
        all_of = f"all {near}" if near == len(found) else f"{near} of {len(found)}"
        said.append(
            f"The accuracy of {all_of} lies within one standard error "
            f"({100 * error:.1f} points) of the best one's."
        )
    return said


def _accuracy(row: ComparedPruning, comparison: Comparison) -> str:
    metrics = row.metrics
    change = 100 * (metrics.accuracy - comparison.dense.accuracy)
    error = f" ± {100 * metrics.standard_error:.1f}" if metrics.tasks else ""
    return f"{100 * metrics.accuracy:.1f}{error} % ({change:+.1f})"

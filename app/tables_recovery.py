"""Ranks by hand as a table to edit, and what recovery changed, row by row."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from app import wording
from qpruner_core.domain.metrics import Metrics

RANK = "Rank"
NOTHING = "-"


def from_ranks(ranks: Mapping[str, int], n_layers: int) -> pd.DataFrame:
    """Return one row per layer with its rank by hand; empty where it has that of the model."""
    given = [ranks.get(str(i)) for i in range(n_layers)]
    index = pd.RangeIndex(n_layers, name="layer")
    return pd.DataFrame({RANK: pd.Series(given, dtype="Int64")}, index=index)


def to_ranks(table: pd.DataFrame) -> dict[str, int]:
    """Return the ranks that an edited table states, as `RecoverySpec.layer_ranks` keeps them."""
    stated = table[RANK].dropna()
    return {str(layer): int(rank) for layer, rank in stated.items()}


def before_after(before: Metrics, after: Metrics, dense: Metrics | None = None) -> pd.DataFrame:
    """Return what was measured before and after, row by row, accuracies with their standard
    errors; the dense model beside them where it is known.
    """
    columns = {"Dense": dense} if dense is not None else {}
    columns |= {"Before": before, "After": after}
    table = {name: _column(metrics, after) for name, metrics in columns.items()}
    return pd.DataFrame({**table, "Change": _changes(before, after)})


def _column(metrics: Metrics, after: Metrics) -> dict[str, str]:
    rows = {
        "Loss, nats/token": f"{metrics.loss:.3f}",
        "Perplexity": f"{metrics.perplexity:.2f}",
        "Weights": wording.size(metrics.weight_bytes),
    }
    if after.tasks:
        rows["Accuracy, mean"] = (
            wording.accuracy(metrics.accuracy, metrics.standard_error)
            if metrics.tasks
            else NOTHING
        )
    for name in sorted(after.tasks):
        found = metrics.tasks.get(name)
        rows[name] = wording.accuracy(found.accuracy, found.standard_error) if found else NOTHING
    return rows


def _changes(before: Metrics, after: Metrics) -> dict[str, str]:
    rows = {
        "Loss, nats/token": f"{after.loss - before.loss:+.3f}",
        "Perplexity": f"{after.perplexity - before.perplexity:+.2f}",
        "Weights": wording.size_change(after.weight_bytes, before.weight_bytes),
    }
    if after.tasks:
        rows["Accuracy, mean"] = wording.points(after.accuracy - before.accuracy)
    for name in sorted(after.tasks):
        found = before.tasks.get(name)
        change = after.tasks[name].accuracy - found.accuracy if found else 0.0
        rows[name] = wording.points(change) if found else NOTHING
    return rows

"""Ranks by hand as a table to edit, and what recovery changed, task by task."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from app import wording
from qpruner_core.domain.metrics import Metrics, TaskResult

RANK = "Rank"


def from_ranks(ranks: Mapping[str, int], n_layers: int) -> pd.DataFrame:
    """Return one row per layer with its rank by hand; empty where it has that of the model."""
    given = [ranks.get(str(i)) for i in range(n_layers)]
    index = pd.RangeIndex(n_layers, name="layer")
    return pd.DataFrame({RANK: pd.Series(given, dtype="Int64")}, index=index)


def to_ranks(table: pd.DataFrame) -> dict[str, int]:
    """Return the ranks that an edited table states, as `RecoverySpec.layer_ranks` keeps them."""
    stated = table[RANK].dropna()
    return {str(layer): int(rank) for layer, rank in stated.items()}


def before_after(before: Metrics, after: Metrics) -> pd.DataFrame:
    """Return one row per task with its accuracy before and after, each with its standard error,
    and the mean over all of them last.
    """
    rows = [
        {
            "Task": name,
            "Before": _accuracy(before.tasks[name]),
            "After": _accuracy(result),
            "Change": wording.points(result.accuracy - before.tasks[name].accuracy),
            "Items": result.n_items,
        }
        for name, result in sorted(after.tasks.items())
        if name in before.tasks
    ]
    mean = {
        "Task": "mean",
        "Before": accuracy(before.accuracy, before.standard_error),
        "After": accuracy(after.accuracy, after.standard_error),
        "Change": wording.points(after.accuracy - before.accuracy),
        "Items": sum(result.n_items for result in after.tasks.values()),
    }
    return pd.DataFrame([*rows, mean] if rows else [])


def accuracy(share: float, error: float) -> str:
    """Return an accuracy with its standard error, such as ``61.4 ± 2.9 %``."""
    return f"{100 * share:.1f} ± {100 * error:.1f} %"


def _accuracy(result: TaskResult) -> str:
    return accuracy(result.accuracy, result.standard_error)

"""How alike criteria rank units: whether choosing between them changes what leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpruner_core.domain.record import Agreement

Scored = Mapping[str, Mapping[str, NDArray[Any]]]


def agreement(unit_scores: Scored, kinds: Mapping[str, str]) -> tuple[Agreement, ...]:
    """Return Spearman's rank correlation of every two criteria, per kind of unit.

        rho = Pearson correlation of the ranks, tied units sharing the mean of theirs; in [-1, 1]

    taken within each group, as selection by layer ranks there, then averaged over the groups of a
    kind. Groups whose units a criterion does not tell apart have no correlation and are left out;
    a kind without any other is left out whole.

    Args:
        unit_scores: Criterion -> group name -> scores (n_units,).
        kinds: Group name -> kind of unit.
    """
    ranked = {
        criterion: {name: standard_ranks(values) for name, values in groups.items()}
        for criterion, groups in unit_scores.items()
    }
    return tuple(
        Agreement(first=first, second=second, kind=kind, correlation=value)
        for first, second in combinations(ranked, 2)
        for kind in dict.fromkeys(kinds.values())
        for value in _mean(
            float(ranked[first][name] @ ranked[second][name])
            for name, of in kinds.items()
            if of == kind
        )
    )


def standard_ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return ranks (n_units,) about their mean, of Euclidean length 1; NaN where all are tied."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[place]
    away = ranks - ranks.mean()
    length = np.linalg.norm(away)
    return away / length if length else np.full(len(values), np.nan)


def _mean(correlations: Iterable[float]) -> list[float]:
    """Return the mean of what is a number, at most 1 in size; empty when nothing is."""
    known = [value for value in correlations if np.isfinite(value)]
    return [float(np.clip(np.mean(known), -1.0, 1.0))] if known else []

"""How far a table is, in pieces, and how long the rest takes, by what was done so far."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from qpruner_core.domain.reproduction import VARIANTS, Reproduction, ReproductionSpec, ratio_key
from qpruner_core.pipeline.reproduction_settings import N_BASELINES

BEFORE = ("load", "score", "prune", "quantize")
"""Steps of a ratio's run before its search; each counts as a piece, as do a measured plan and a
row."""


def step_words(name: str) -> str:
    """Return a step as the screen has it."""
    return {"quantize": "quantise"}.get(name, name)


def n_plans(spec: ReproductionSpec) -> int:
    """Return how many plans the search of a ratio measures; fewer where all plans were tried."""
    return N_BASELINES + spec.n_trials


def n_pieces(spec: ReproductionSpec) -> int:
    """Return how many pieces a ratio has."""
    return len(BEFORE) + n_plans(spec) + len(VARIANTS)


class Pace:
    """Seconds per kind of piece, learnt from the reports."""

    def __init__(self) -> None:
        self._plans: list[float] = []

    def measured(self, seconds: float) -> None:
        """Learn how long a plan took."""
        self._plans.append(seconds)

    def left(
        self,
        table: Reproduction,
        ratio: float,
        done: int,
        steps: Mapping[str, float],
        row: tuple[float, float],
    ) -> float | None:
        """Return the seconds that are left of the table; None while too little is known.

        Args:
            table: As far as it has come.
            ratio: What is worked on now.
            done: Pieces of that ratio that are done.
            steps: Seconds of the finished steps of that ratio's run.
            row: Seconds that the row under way has taken, and the share of it that is done; zeros
                between rows.
        """
        per_row, plans = self._per_row(table, *row), self._per_ratio(table, steps)
        if per_row is None or plans is None:
            return None
        spec = table.spec
        later = len(spec.ratios) - 1 - spec.ratios.index(ratio)
        rows_left = len(VARIANTS) - max(0, done - len(BEFORE) - n_plans(spec))
        search_left = max(0, len(BEFORE) + n_plans(spec) - done) / (len(BEFORE) + n_plans(spec))
        here = search_left * plans + max(0.0, rows_left * per_row - row[0])
        return here + later * (plans + len(VARIANTS) * per_row)

    def _per_row(self, table: Reproduction, elapsed: float, share: float) -> float | None:
        known = [row.seconds for row in table.rows]
        if known:
            return fmean(known)
        return elapsed / share if share > 0.0 else None

    def _per_ratio(self, table: Reproduction, steps: Mapping[str, float]) -> float | None:
        """Return the seconds of everything before the rows of a ratio."""
        known = [table.search_seconds.get(ratio_key(ratio)) for ratio in table.spec.ratios]
        finished = [seconds for seconds in known if seconds is not None]
        if finished:
            return fmean(finished)
        if not self._plans:
            return None
        before = sum(steps.get(name, 0.0) for name in BEFORE)
        return before + n_plans(table.spec) * fmean(self._plans)

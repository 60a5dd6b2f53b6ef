"""A measured plan of a run, by its number."""

from __future__ import annotations

from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.errors import BadInputError, NotReadyError


def measured_trial(record: RunRecord, number: int | None) -> Trial:
    """Return a measured plan of a run; None for the chosen one.

    Raises:
        NotReadyError: Nothing has been searched.
        BadInputError: There is no such plan.
    """
    if record.search is None:
        raise NotReadyError(f"Run {record.run_id} has no measured plans yet. Search first.")
    wanted = record.search.chosen if number is None else number
    for trial in (*record.search.trials, *record.search.baselines):
        if trial.number == wanted and trial.metrics is not None:
            return trial
    raise BadInputError(
        f"Run {record.run_id} has no measured plan number {wanted}. Choose one of those on the "
        f"Results page or of 'qpruner runs {record.run_id} --json'."
    )

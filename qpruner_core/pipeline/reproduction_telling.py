"""What the run of a ratio reports, told as pieces of the whole table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

from qpruner_core.domain.progress import OnProgress, Progress
from qpruner_core.domain.reproduction import VARIANTS, Reproduction, ratio_key, ratio_words
from qpruner_core.pipeline.reproduction_pace import BEFORE, Pace, n_pieces, n_plans

STEP = "reproduce"
"""Under this name the table reports its progress, in pieces of the whole."""


class Telling:
    """Reports of one table; who works on it says at what."""

    def __init__(
        self,
        on_progress: OnProgress,
        table: Callable[[], Reproduction],
        step_seconds: Callable[[str], Mapping[str, float]],
    ) -> None:
        """Listen for a table.

        Args:
            on_progress: Told of the whole.
            table: Returns the table as it stands.
            step_seconds: Run -> seconds of its finished steps.
        """
        self._on_progress = on_progress
        self._table = table
        self._step_seconds = step_seconds
        self._pace = Pace()
        self._n_measured = 0
        self._row_began: float | None = None
        self.ratio = 0.0
        """What is worked on now."""
        self.what = ""
        """At which piece of it, in words."""

    def of_another_run(self) -> None:
        """Count the plans of a search from nothing."""
        self._n_measured = 0

    @contextmanager
    def timing_row(self) -> Iterator[None]:
        """Tell the time left by how far the row under way is."""
        self._row_began = perf_counter()
        try:
            yield
        finally:
            self._row_began = None

    def __call__(self, told: Progress) -> None:
        """Report what a ratio's run reports."""
        table, values = self._table(), dict(told.values)
        if told.step == "search" and "seconds" in values:
            self._pace.measured(values["seconds"])
        done, index = self._done(table, told), table.spec.ratios.index(self.ratio)
        each = n_pieces(table.spec)
        left = self._seconds_left(table, told, done)
        if left is not None:
            values["seconds_left"] = left
        part = f" {told.done} of {told.total}" if told.total > 1 else ""
        words = [f"{ratio_words(self.ratio)}, {self.what}{part}", told.message]
        self._on_progress(
            Progress(
                step=STEP,
                done=index * each + done,
                total=len(table.spec.ratios) * each,
                message=": ".join(word for word in words if word),
                values=values,
            )
        )

    def _done(self, table: Reproduction, told: Progress) -> int:
        """Return how many pieces of the present ratio are done."""
        if self.what in VARIANTS:
            return len(BEFORE) + n_plans(table.spec) + VARIANTS.index(self.what)
        if self.what == "search":
            # Every piece begins by saying that nothing is done.
            self._n_measured = max(self._n_measured, min(told.done, n_plans(table.spec)))
            return len(BEFORE) + self._n_measured
        return BEFORE.index(told.step) if told.step in BEFORE else 0

    def _seconds_left(self, table: Reproduction, told: Progress, done: int) -> float | None:
        row = (0.0, 0.0)
        if self._row_began is not None:
            row = (perf_counter() - self._row_began, told.done / max(1, told.total))
        run_id = table.runs.get(ratio_key(self.ratio))
        steps = self._step_seconds(run_id) if run_id is not None else {}
        return self._pace.left(table, self.ratio, done, steps, row)

"""The paper's table on any model, piece by piece; see `domain.reproduction`.

A *parent* run holds the table. Every pruning ratio has a run of its own that is pruned and
searched as any other, so that its plans can be looked at; all but the first begin as copies of the
first, whose model was scored. What is missing is found from the records alone, so that a process
that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Protocol

from qpruner_core import __version__
from qpruner_core.catalog import check_recovery
from qpruner_core.data.tasks import read_tasks
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.progress import OnProgress, Progress
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.domain.reproduction import (
    VARIANTS,
    Reproduction,
    ReproductionRow,
    ReproductionSpec,
    ratio_key,
)
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import NotReadyError, StoppedError
from qpruner_core.inspection import inspect_model
from qpruner_core.pipeline.materials import Materials, bytes_16_bit
from qpruner_core.pipeline.recovering import Asked, recover_plan
from qpruner_core.pipeline.reproduction_pace import BEFORE, Pace, n_pieces, n_plans
from qpruner_core.pipeline.reproduction_runs import (
    alive,
    alone_with,
    check_ratio,
    new_run,
    percent,
    wanted_spec,
)
from qpruner_core.pipeline.reproduction_settings import (
    held_at_16_bit,
    row_recovery,
    row_trial,
    search_spec,
)
from qpruner_core.store.records import RunStore

STEP = "reproduce"
"""Under this name the table reports its progress, in pieces of the whole."""


class ChildLine(Protocol):
    """What is needed of the line of a ratio's run."""

    @property
    def materials(self) -> Materials:
        """The models of the run."""

    def record(self) -> RunRecord:
        """Return the record as it stands on disk."""

    def begin(self, spec: RunSpec, steps: tuple[str, ...]) -> None:
        """Take a spec over and empty the slots that it will fill."""

    def step(self, name: str) -> None:
        """Run one verb and fill its slot."""

    def search_begin(self) -> int:
        """Return the number of baselines of the search."""

    def search_baseline(self, index: int) -> Trial:
        """Measure a baseline, unless it has been measured."""

    def search_next(self, owner: str, *, alone: bool = False) -> Trial | None:
        """Claim the plan to measure next and measure it; None when nothing is left."""

    def search_finish(self) -> None:
        """Fill the slot of *search*."""


MakeLine = Callable[[str, OnProgress], ChildLine]
"""Builds the line of a run, which reports to somebody."""


class Reproducing:
    """The table of one parent run; its caller is the only writer of the parent."""

    def __init__(
        self,
        store: RunStore,
        run_id: str,
        make_line: MakeLine,
        on_progress: OnProgress,
        should_stop: Callable[[], bool],
    ) -> None:
        self._store = store
        self._run_id = run_id
        self._make_line = make_line
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._line: ChildLine | None = None
        self._line_id = ""
        self._pace = Pace()
        self._ratio, self._n_measured = 0.0, 0
        self._what = ""
        self._row_began: float | None = None

    def begin(self, spec: ReproductionSpec) -> None:
        """Take the table into the parent's record; one that asks for the same goes on.

        What can be refused without computing is refused here.

        Raises:
            QPrunerError: A name, a task or a ratio that cannot work for this model.
        """
        record = self._store.read(self._run_id)
        if record.reproduction is not None and record.reproduction.spec == spec:
            return
        check_recovery(spec.recovery)
        data = record.spec.data
        read_tasks(data.tasks, 1, names=data.task_names)
        card = record.load or inspect_model(record.spec.model)
        for ratio in spec.ratios:
            check_ratio(record, spec, card, ratio)
        table = Reproduction(
            spec=spec,
            model=card.title,
            begun_at=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
        )
        self._store.write(replace(record, reproduction=table))
        self._let_go()

    def next(self, owner: str) -> str:
        """Do the first piece that is missing: a step of a ratio's run, a plan or a row.

        Args:
            owner: Under which name plans are claimed.

        Returns:
            What was done, in words; empty when the table is complete.

        Raises:
            NotReadyError: The parent has no table that was begun.
            StoppedError: Training, or the wait for another writer, was stopped; asked again, it
                goes on.
        """
        missing = self._table().missing
        if not missing:
            self._let_go()
            return ""
        ratio, variant = missing[0]
        self._ratio, self._what = ratio, "beginning"
        child = self._child(ratio)
        with alone_with(self._store, child.run_id, self._should_stop):
            return f"{percent(ratio)}, {self._piece(ratio, variant, owner)}"

    # pieces -------------------------------------------------------------------------------------

    def _piece(self, ratio: float, variant: str, owner: str) -> str:
        line = self._line_of(ratio)
        record = line.record()
        for name in ("load", "score", "prune"):
            if getattr(record, name) is None:
                return self._step(line, name)
            if name == "load" and self._table().dense is None:
                return self._dense(line)
        if record.quantize is None:
            self._begin_search(line, record)
            return self._step(line, "quantize")
        if record.search is None:
            return self._plan(line, record, owner)
        return self._row(line, ratio, variant)

    def _step(self, line: ChildLine, name: str) -> str:
        self._what = name
        line.step(name)
        return name

    def _dense(self, line: ChildLine) -> str:
        """Measure the model before pruning, on the items of the rows."""
        self._what = "the dense model"
        self._tell(Progress(step="load", done=0, total=1))
        dense = line.materials.dense()
        metrics: Metrics = line.materials.suite_of(self._table().spec.items_per_task).evaluate(
            dense.model,
            weight_bytes=bytes_16_bit(dense.layout),
            device_name=dense.device.name,
        )
        self._write(replace(self._table(), dense=metrics))
        return self._what

    def _begin_search(self, line: ChildLine, record: RunRecord) -> None:
        if record.prune is None:
            raise NotReadyError("This run has no pruned model yet. Run its pruning step first.")
        spec = self._table().spec
        search = search_spec(spec, record.spec.data, record.prune.spec, record.prune.layout)
        line.begin(replace(record.spec, search=search), ("quantize", "search"))

    def _plan(self, line: ChildLine, record: RunRecord, owner: str) -> str:
        """Measure the next plan of the search, or end it."""
        self._what = "search"
        name = record.baselines_name
        known = self._store.read_value(record.run_id, name, tuple[Trial, ...]) or ()
        if len(known) < line.search_begin():
            return f"search: {line.search_baseline(len(known)).name}"
        trial = line.search_next(owner, alone=True)
        if trial is not None:
            return f"search: trial {trial.number}"
        line.search_finish()
        self._note_search(line.record())
        return "search, finished"

    def _note_search(self, record: RunRecord) -> None:
        """Take what the search of a ratio took, and its remarks, into the table."""
        table, where = self._table(), percent(self._ratio)
        taken = sum(record.seconds.get(name, 0.0) for name in (*BEFORE, "search"))
        remarks = record.search.remarks if record.search is not None else ()
        told = tuple(f"At {where}: {sentence}" for sentence in remarks)
        seconds = {**table.search_seconds, ratio_key(self._ratio): taken}
        self._write(replace(table, search_seconds=seconds, remarks=(*table.remarks, *told)))

    def _row(self, line: ChildLine, ratio: float, variant: str) -> str:
        self._what, record, table = variant, line.record(), self._table()
        if record.search is None:
            raise NotReadyError("This run has no finished search yet. Search first.")
        trial = row_trial(variant, table.spec.setting, record.search)
        twin = next(
            (row for row in table.rows if row.ratio == ratio and row.plan.key == trial.plan.key),
            None,
        )
        if twin is not None:
            told = f"At {percent(ratio)} the plan of {variant} is that of {twin.variant}."
            row = replace(twin, variant=variant, trial=trial.number, seconds=0.0)
            table = replace(table, remarks=(*table.remarks, told))
        else:
            row = self._recovered(line, record, trial, variant)
        self._write(replace(table, rows=(*table.rows, row)))
        return f"{variant}, recovered"

    def _recovered(
        self, line: ChildLine, record: RunRecord, trial: Trial, variant: str
    ) -> ReproductionRow:
        """Recover a plan on the items of the rows.

        Raises:
            StoppedError: Training was stopped before its last step.
        """
        spec = self._table().spec
        asked = Asked(
            plan=trial.plan,
            spec=row_recovery(variant, spec.recovery),
            name=_artifact_name(variant),
            hold_16_bit=held_at_16_bit(spec.setting),
        )
        with self._timing_row():
            began = perf_counter()
            suite = line.materials.suite_of(spec.items_per_task)
            told = (self._tell, self._should_stop)
            outcome = recover_plan(self._store, record, line.materials, asked, suite, *told)
            seconds = perf_counter() - began
        if not outcome.is_complete:
            raise StoppedError(
                f"The row {variant} of the table was stopped after {len(outcome.losses)} of "
                f"{outcome.spec.steps} steps of its training. Go on with the table: it continues "
                f"from there."
            )
        return ReproductionRow(
            ratio=self._ratio,
            variant=variant,
            run_id=record.run_id,
            trial=trial.number,
            plan=trial.plan,
            recovery=outcome,
            weight_bytes=outcome.before.weight_bytes,
            seconds=seconds,
        )

    # the runs of the ratios ----------------------------------------------------------------------

    def _child(self, ratio: float) -> RunRecord:
        """Return the run of a ratio; begun now, or begun anew where it was deleted."""
        table, key = self._table(), ratio_key(ratio)
        found = alive(self._store, table.runs.get(key, ""))
        if found is None:
            found = new_run(self._store, self._store.read(self._run_id), table, ratio)
            # Rows of a run that is gone would not share the pruning of those that follow.
            rows = tuple(row for row in table.rows if row.ratio != ratio)
            runs = {**table.runs, key: found.run_id}
            self._write(replace(table, runs=runs, rows=rows))
        spec = wanted_spec(table, found, ratio)
        if found.prune is None and found.spec.pruning != spec.pruning:
            with alone_with(self._store, found.run_id, self._should_stop):
                self._line_of(ratio).begin(spec, ("prune",))
        return found

    def _line_of(self, ratio: float) -> ChildLine:
        """Return the line of a ratio's run with its models; that of the ratio before is
        dropped.
        """
        run_id = self._table().runs[ratio_key(ratio)]
        if self._line is None or self._line_id != run_id:
            self._let_go()
            self._n_measured = 0
            self._line, self._line_id = self._make_line(run_id, self._tell), run_id
        return self._line

    def _let_go(self) -> None:
        if self._line is not None:
            self._line.materials.let_go()
            self._line, self._line_id = None, ""

    # records and reports -------------------------------------------------------------------------

    def _table(self) -> Reproduction:
        found = self._store.read(self._run_id).reproduction
        if found is None:
            raise NotReadyError(
                f"The run {self._run_id} has no table of the paper's rows yet. Begin one with "
                f"'qpruner reproduce'."
            )
        return found

    def _write(self, table: Reproduction) -> None:
        self._store.write(replace(self._store.read(self._run_id), reproduction=table))

    @contextmanager
    def _timing_row(self) -> Iterator[None]:
        self._row_began = perf_counter()
        try:
            yield
        finally:
            self._row_began = None

    def _tell(self, told: Progress) -> None:
        """Report what a ratio's run reports, as pieces of the whole table."""
        table, values = self._table(), dict(told.values)
        if told.step == "search" and "seconds" in values:
            self._pace.measured(values["seconds"])
        done, index = self._done(table, told), table.spec.ratios.index(self._ratio)
        each = n_pieces(table.spec)
        left = self._seconds_left(table, told, done)
        if left is not None:
            values["seconds_left"] = left
        part = f" {told.done} of {told.total}" if told.total > 1 else ""
        words = [f"{percent(self._ratio)}, {self._what}{part}", told.message]
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
        if self._what in VARIANTS:
            return len(BEFORE) + n_plans(table.spec) + VARIANTS.index(self._what)
        if self._what == "search":
            # Every piece begins by saying that nothing is done.
            self._n_measured = max(self._n_measured, min(told.done, n_plans(table.spec)))
            return len(BEFORE) + self._n_measured
        return BEFORE.index(told.step) if told.step in BEFORE else 0

    def _seconds_left(self, table: Reproduction, told: Progress, done: int) -> float | None:
        row = (0.0, 0.0)
        if self._row_began is not None:
            row = (perf_counter() - self._row_began, told.done / max(1, told.total))
        run_id = table.runs.get(ratio_key(self._ratio))
        steps = self._store.read(run_id).seconds if run_id is not None else {}
        return self._pace.left(table, self._ratio, done, steps, row)


def _artifact_name(variant: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in variant.lower()).split()
    return "-".join(("row", *words))

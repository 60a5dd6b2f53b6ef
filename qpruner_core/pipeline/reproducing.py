"""The paper's table on any model, piece by piece; see `domain.reproduction`.

A *parent* run holds the table. Every pruning ratio has a run of its own that is pruned and
searched as any other, so that its plans can be looked at; all but the first begin as copies of the
first, whose model was scored. What is missing is found from the records alone, so that a process
that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Protocol

from qpruner_core import __version__
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.progress import OnProgress, Progress
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.domain.reproduction import (
    Reproduction,
    ReproductionRow,
    ReproductionSpec,
    of_ratio,
    ratio_key,
    ratio_words,
)
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import NotReadyError, StoppedError
from qpruner_core.pipeline.materials import Materials, bytes_16_bit
from qpruner_core.pipeline.recovering import Asked, end_training, recover_plan
from qpruner_core.pipeline.reproduction_pace import (
    step_words,
)
from qpruner_core.pipeline.reproduction_runs import (
    alive,
    alone_with,
    check_table,
    new_run,
    wanted_spec,
)
from qpruner_core.pipeline.reproduction_settings import (
    held_at_16_bit,
    row_recovery,
    row_trial,
    search_spec,
)
from qpruner_core.pipeline.reproduction_standing import (
    changed_since,
    check_files,
    check_items,
    evaluated,
    pruning_of,
    with_search,
)
from qpruner_core.pipeline.reproduction_telling import Telling
from qpruner_core.store.records import RunStore


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
        self._tell = Telling(on_progress, self._table, lambda run: store.read(run).seconds)
        self._should_stop = should_stop
        self._line: ChildLine | None = None
        self._line_id = ""

    def begin(self, spec: ReproductionSpec) -> None:
        """Take the table into the parent's record; one that asks for the same goes on, and one
        that differs in its ratios alone keeps those that stay.

        What can be refused without computing is refused here.

        Raises:
            QPrunerError: A name, a task or a ratio that cannot work for this model, or a table to
                go on with whose items were edited.
        """
        record = self._store.read(self._run_id)
        known = record.reproduction
        if known is not None and known.differs_in_ratios_only(spec):
            check_files(self._store, record, known)
            if known.spec == spec:
                return
        card = check_table(record, spec)
        if known is not None and known.differs_in_ratios_only(spec):
            table = known.with_ratios(spec.ratios)
        else:
            table = Reproduction(
                spec=spec,
                model=card.title,
                begun_at=datetime.now(UTC).isoformat(timespec="seconds"),
                version=__version__,
                evaluated=evaluated(self._store, record),
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
            NotReadyError: The parent has no table that was begun, or its items were edited.
            StoppedError: Training, or the wait for another writer, was stopped; asked again, it
                goes on.
        """
        record, table = self._store.read(self._run_id), self._table()
        missing = table.missing
        if not missing:
            self._let_go()
            return ""
        check_files(self._store, record, table)
        ratio, variant = missing[0]
        self._tell.ratio, self._tell.what = ratio, "beginning"
        child = self._child(ratio)
        with alone_with(self._store, child.run_id, self._should_stop):
            return f"{ratio_words(ratio)}, {self._piece(ratio, variant, owner)}"

    # pieces -------------------------------------------------------------------------------------

    def _piece(self, ratio: float, variant: str, owner: str) -> str:
        line, table = self._line_of(ratio), self._table()
        record, parent = line.record(), self._store.read(self._run_id)
        wanted = wanted_spec(table, parent, record, ratio)
        changed = changed_since(table, record, wanted, ratio)
        if changed:
            return self._begin_anew(record, wanted, changed)
        if record.prune is None and record.spec.pruning != wanted.pruning:
            line.begin(wanted, ("prune",))
            record = line.record()
        for name in ("load", "score", "prune"):
            if getattr(record, name) is None:
                return self._step(line, name)
            if name == "load" and table.dense is None:
                return self._dense(line)
        if record.quantize is None:
            self._begin_search(line, record)
            return self._step(line, "quantize")
        if record.search is None:
            return self._plan(line, record, owner)
        self._note_search(record)
        return self._row(line, ratio, variant)

    def _begin_anew(self, child: RunRecord, wanted: RunSpec, changed: str) -> str:
        """Give the ratio a new run in the place of one that is no longer what the table began; its
        rows are of another pruning, budget or text than those to come.
        """
        table = self._table().without(self._tell.ratio)
        if (child.spec.model, child.spec.data) != (wanted.model, wanted.data):
            table = replace(table, dense=None)
        told = of_ratio(
            self._tell.ratio,
            f" the {changed} of run {child.run_id} was changed, so that another run and other "
            f"rows have taken its place.",
        )
        self._write(replace(table, remarks=(*table.remarks, told)))
        self._let_go()
        return f"begun anew, as the {changed} of its run was changed"

    def _step(self, line: ChildLine, name: str) -> str:
        self._tell.what = step_words(name)
        line.step(name)
        return self._tell.what

    def _dense(self, line: ChildLine) -> str:
        """Measure the model before pruning, on the items of the rows."""
        self._tell.what = "the dense model"
        self._tell(Progress(step="load", done=0, total=1))
        dense = line.materials.dense()
        metrics: Metrics = line.materials.suite_of(self._table().spec.items_per_task).evaluate(
            dense.model,
            weight_bytes=bytes_16_bit(dense.layout),
            device_name=dense.device.name,
        )
        self._write(replace(self._table(), dense=metrics))
        return self._tell.what

    def _begin_search(self, line: ChildLine, record: RunRecord) -> None:
        if record.prune is None:
            raise NotReadyError("This run has no pruned model yet. Run its pruning step first.")
        spec = self._table().spec
        search = search_spec(spec, record.spec.data, record.prune.spec, record.prune.layout)
        asked = replace(record.spec, search=search, recovery=spec.recovery)
        line.begin(asked, ("quantize", "search"))

    def _plan(self, line: ChildLine, record: RunRecord, owner: str) -> str:
        """Measure the next plan of the search, or end it."""
        self._tell.what = "search"
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
        """Take what the search of a ratio took, and its remarks, into the table, unless it has
        them: a process may have been killed between the two records.
        """
        table, key = self._table(), ratio_key(self._tell.ratio)
        if key not in table.search_seconds:
            self._write(with_search(table, record, self._tell.ratio, key))

    def _row(self, line: ChildLine, ratio: float, variant: str) -> str:
        self._tell.what, record, table = variant, line.record(), self._table()
        if record.search is None:
            raise NotReadyError("This run has no finished search yet. Search first.")
        trial = row_trial(variant, table.spec.setting, record.search)
        alike = (ratio, trial.plan.key, pruning_of(record))
        twin = next(
            (row for row in table.rows if (row.ratio, row.plan.key, row.pruning) == alike), None
        )
        if twin is not None:
            told = of_ratio(ratio, f" the plan of {variant} is that of {twin.variant}.")
            row = replace(twin, variant=variant, trial=trial.number, seconds=0.0)
            table = replace(table, remarks=(*table.remarks, told))
        else:
            row = self._recovered(line, record, trial, variant)
            check_items(table, row.recovery.after)
        self._write(table.with_row(row))
        end_training(self._store, record.run_id, row.recovery, _artifact_name(variant))
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
        with self._tell.timing_row():
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
            ratio=self._tell.ratio,
            variant=variant,
            run_id=record.run_id,
            trial=trial.number,
            plan=trial.plan,
            recovery=outcome,
            weight_bytes=outcome.before.weight_bytes,
            seconds=seconds,
            pruning=pruning_of(record),
            counts_temporaries=True,
        )

    # the runs of the ratios ----------------------------------------------------------------------

    def _child(self, ratio: float) -> RunRecord:
        """Return the run of a ratio; begun now, or begun anew where it was deleted."""
        table, key = self._table(), ratio_key(ratio)
        found = alive(self._store, table.runs.get(key, ""))
        if found is None:
            found = new_run(self._store, self._store.read(self._run_id), table, ratio)
            if key in table.runs:
                # Rows of a run that is gone would not share the pruning of those that follow.
                table = table.without(ratio)
            self._write(replace(table, runs={**table.runs, key: found.run_id}))
        return found

    def _line_of(self, ratio: float) -> ChildLine:
        """Return the line of a ratio's run with its models; that of the ratio before is
        dropped.
        """
        run_id = self._table().runs[ratio_key(ratio)]
        if self._line is None or self._line_id != run_id:
            self._let_go()
            self._tell.of_another_run()
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


def _artifact_name(variant: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in variant.lower()).split()
    return "-".join(("row", *words))

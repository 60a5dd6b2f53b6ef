"""The runs of a table's ratios: what is refused beforehand, how they begin, who writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import Event as Flag

from qpruner_core.catalog import check_recovery, check_spec
from qpruner_core.data.tasks import read_tasks
from qpruner_core.domain.record import ModelCard, RunRecord
from qpruner_core.domain.reproduction import Reproduction, ReproductionSpec, ratio_words
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import IncompatibleShapeError, NotReadyError, StoppedError
from qpruner_core.inspection import inspect_model
from qpruner_core.pipeline.beginning import check_feasible, widths_are_known
from qpruner_core.pipeline.reproduction_settings import HIGH, LOW, cut_spec, search_spec
from qpruner_core.pipeline.searching import check_budget
from qpruner_core.pruning.selection import select
from qpruner_core.quantization.shapes import check_shapes
from qpruner_core.store.records import RunStore

LOOK_AT_LOCK_SECONDS = 0.25
"""How often is looked whether the other writer of a ratio's run is done."""


def check_table(record: RunRecord, spec: ReproductionSpec) -> ModelCard:
    """Refuse a table that cannot work for the model of a run, before anything is computed; return
    what its headers say.

    Args:
        record: The run; one that was not made yet is one of the spec that it would have.
        spec: What the table is made of.

    Raises:
        QPrunerError: A name, a number, a task or a ratio that cannot work.
    """
    spec.check_startup()
    check_recovery(spec.recovery)
    data = record.spec.data
    read_tasks(data.tasks, 1, names=data.task_names)
    card = record.load or inspect_model(record.spec.model)
    for ratio in spec.ratios:
        check_ratio(record, spec, card, ratio)
    return card


def check_ratio(record: RunRecord, spec: ReproductionSpec, card: ModelCard, ratio: float) -> None:
    """Refuse a ratio that no pruning reaches, or whose widths no 4-bit layer carries.

    Raises:
        QPrunerError: The message names the ratio where that is not clear.
    """
    asked = cut_spec(spec, record.spec, card.layout, ratio)
    check_feasible(replace(record, load=None, prune=None), asked, ("load", "score", "prune"))
    pruned = card.layout.pruned(select(card.layout, None, asked.pruning).plan)
    if widths_are_known(asked.pruning):
        try:
            check_shapes(pruned, (LOW, HIGH))
        except IncompatibleShapeError as error:
            raise IncompatibleShapeError(f"At a pruning ratio of {ratio:g}, {error}") from error
    search = search_spec(spec, record.spec.data, asked.pruning, pruned)
    check_spec(replace(asked, search=search))
    check_budget(search, card.layout, pruned)


def alive(store: RunStore, run_id: str) -> RunRecord | None:
    """Return the record of a run; None where it was never begun, or was deleted."""
    if not run_id or not store.folder(run_id).is_dir():
        return None
    return store.read(run_id)


def new_run(store: RunStore, parent: RunRecord, table: Reproduction, ratio: float) -> RunRecord:
    """Return a new run for a ratio: a copy of one whose model was scored, if there is one."""
    name = f"{table.model}, {table.spec.setting}, {ratio_words(ratio)}"
    card = parent.load or inspect_model(parent.spec.model)
    spec = replace(cut_spec(table.spec, parent.spec, card.layout, ratio), name=name)
    others = (alive(store, run_id) for run_id in table.runs.values())
    scored = next((run for run in others if run is not None and _is_scored(run, spec)), None)
    return store.create(spec) if scored is None else store.fork(scored.run_id, "prune", name)


def _is_scored(run: RunRecord, wanted: RunSpec) -> bool:
    """Whether a run has the scores that another one would compute."""
    alike = (run.spec.model, run.spec.data) == (wanted.model, wanted.data)
    return alike and run.score is not None and run.score.spec == wanted.importance


def wanted_spec(table: Reproduction, parent: RunRecord, child: RunRecord, ratio: float) -> RunSpec:
    """Return what the run of a ratio is asked for up to its pruning."""
    card = child.load or inspect_model(parent.spec.model)
    spec = cut_spec(table.spec, parent.spec, card.layout, ratio)
    return replace(spec, name=child.spec.name)


@contextmanager
def alone_with(store: RunStore, run_id: str, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Be the only writer of a ratio's run; others, such as a prompt that its models answer, are
    waited for.

    Raises:
        StoppedError: It was asked to stop while it waited.
    """
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(store.writing(run_id))
                break
            except NotReadyError as busy:
                if should_stop():
                    raise StoppedError(
                        f"The table was stopped while it waited. {busy} Go on with it then."
                    ) from busy
                Flag().wait(LOOK_AT_LOCK_SECONDS)
        yield

"""What each command does; torch is imported only by those that compute."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpruner_core.catalog import check_recovery, check_spec, precision_formats
from qpruner_core.cli import report
from qpruner_core.cli.compress import run_compress
from qpruner_core.cli.doctor import examine
from qpruner_core.cli.evaluate_options import is_beside, run_evaluate
from qpruner_core.cli.queued import check_alone, run_queued, steer_jobs
from qpruner_core.cli.recovering import (
    LOADING,
    Interruption,
    estimate_document,
    estimate_lines,
    words_where_nothing_was_trained,
)
from qpruner_core.cli.replacing import replaced_words
from qpruner_core.cli.report_pruning import comparison_document, comparison_lines
from qpruner_core.cli.reproduce import run_reproduce
from qpruner_core.cli.search_options import answers
from qpruner_core.cli.specs import model_spec, overlay, run_spec
from qpruner_core.domain.adapters import adapter_ranks
from qpruner_core.domain.measured import measured_trial
from qpruner_core.domain.progress import OnProgress, Progress, silent
from qpruner_core.domain.record import STEPS, RunRecord
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import BadInputError, OutputExistsError, QPrunerError
from qpruner_core.inspection import check_training, inspect_model
from qpruner_core.store.home import home
from qpruner_core.store.records import RunStore

if TYPE_CHECKING:
    from qpruner_core.pipeline import Line


def run_command(arguments: Namespace) -> None:
    """Carry out the command that was parsed."""
    commands: dict[str, Callable[[Namespace], None]] = {
        "inspect": _inspect,
        "run": _run,
        "compare": _compare,
        "evaluate": _evaluate,
        "compress": _compress,
        "reproduce": _reproduce,
        "runs": _runs,
        "jobs": _jobs,
        "worker": _worker,
        "doctor": _doctor,
    }
    commands.get(arguments.command, _continue)(arguments)


def _store(arguments: Namespace) -> RunStore:
    folder = Path(arguments.home).expanduser().absolute() if arguments.home else home()
    return RunStore(folder)


def _print(arguments: Namespace, document: Any, lines: list[str]) -> None:
    if arguments.json:
        report.write(json.dumps(document, indent=2))
    else:
        report.write("\n".join(lines))


def _inspect(arguments: Namespace) -> None:
    card = inspect_model(model_spec(arguments))
    document = report.card_document(card, precision_formats())
    _print(arguments, document, report.card_lines(document))


def _run(arguments: Namespace) -> None:
    spec = run_spec(arguments)
    check_spec(spec)
    _check_out(spec)
    inspect_model(spec.model)
    if spec.recovery.steps:
        check_training(spec.recovery, spec.data)
    store = _store(arguments)
    record = store.create(spec)
    try:
        _go(arguments, store, record, spec, STEPS)
    except QPrunerError:
        if store.read(record.run_id).load is None:
            # Refused before anything was done: nothing is worth keeping.
            store.delete(record.run_id)
        raise


def _continue(arguments: Namespace) -> None:
    """Run every step of an existing run that is missing, up to the one that was asked for."""
    store = _store(arguments)
    record = store.read(arguments.run_id)
    wanted = arguments.command
    spec = overlay(record.spec, arguments)
    if wanted == "recover":
        check_recovery(spec.recovery)
        if spec.recovery.steps or arguments.estimate:
            check_training(spec.recovery, spec.data)
        if arguments.estimate:
            _estimate(arguments, store, record, spec)
            return
    if wanted == "export":
        _check_out(spec)
    # What the search asks of its signals may differ from what was measured.
    measure_again = wanted == "search" and not answers(record, spec)
    steps = record.steps_to(wanted, *(("quantize",) if measure_again else ()))
    if arguments.copy:
        _continue_in_copy(arguments, store, record, steps)
        return
    if getattr(arguments, "workers", None) is None:
        check_alone(store, record.run_id)
    if said := replaced_words(store, record, spec, steps):
        sys.stderr.write(f"{said}\n")
    _go(arguments, store, record, spec, steps)


def _continue_in_copy(
    arguments: Namespace, store: RunStore, record: RunRecord, steps: tuple[str, ...]
) -> None:
    copy = store.fork(record.run_id, steps[0])
    sys.stderr.write(f"Run {record.run_id} stays as it is. Working in its copy {copy.run_id}.\n")
    try:
        # Files that the run was given lie elsewhere in the copy, so what was asked is laid anew.
        _go(arguments, store, copy, overlay(copy.spec, arguments), steps)
    except QPrunerError:
        if not store.events(copy.run_id):
            # Refused before anything was done: nothing is worth keeping.
            store.delete(copy.run_id)
        raise


def _go(
    arguments: Namespace,
    store: RunStore,
    record: RunRecord,
    spec: RunSpec,
    steps: tuple[str, ...],
) -> None:
    interruption = Interruption()
    if getattr(arguments, "workers", None) is None:
        with words_where_nothing_was_trained(store, record.run_id, steps, interruption):
            if steps[0] == "recover" and not arguments.quiet:
                _show(Progress(step="recover", done=0, total=1, message=LOADING))
            _go_here(arguments, store, record.run_id, (spec, steps), interruption)
    else:
        show = silent if arguments.quiet else _show
        run_queued(store, record.run_id, steps, spec, arguments.workers, show)
    done = store.read(record.run_id)
    _print(arguments, report.run_document(done), report.run_lines(done))
    if interruption.asked() and not _is_done(done, steps):
        is_same = len(steps) == 1 and not getattr(arguments, "copy", False)
        again = "The same command" if is_same else f"'qpruner recover {record.run_id}'"
        raise KeyboardInterrupt(f"Stopped. {again} goes on from what was learned.")


def _go_here(
    arguments: Namespace,
    store: RunStore,
    run_id: str,
    asked: tuple[RunSpec, tuple[str, ...]],
    interruption: Interruption,
) -> None:
    """Run steps of a run in this process, until Ctrl-C."""
    line = _line(arguments, store, run_id)
    line.should_stop, tell = interruption.asked, line.on_progress

    def heard(progress: Progress) -> None:
        interruption.hear(progress)
        tell(progress)

    line.on_progress = heard
    with store.writing(run_id):
        line.begin(*asked)
        for step in asked[1]:
            with interruption.listening() if step == "recover" else nullcontext():
                line.run(step)
            if interruption.asked():
                break


def _is_done(record: RunRecord, steps: tuple[str, ...]) -> bool:
    """Whether all steps are there, and recovery has taken all of its own."""
    trained = record.recover is None or record.recover.is_complete
    return trained and all(getattr(record, step) is not None for step in steps)


def _estimate(arguments: Namespace, store: RunStore, record: RunRecord, spec: RunSpec) -> None:
    trial = measured_trial(record, spec.recovery.trial)
    materials = _line(arguments, store, record.run_id).materials
    from qpruner_core.pipeline.beginning import check_feasible  # noqa: PLC0415 - loads torch

    # What training would refuse has no estimate either, steps or none.
    trained = replace(spec.recovery, steps=max(1, spec.recovery.steps))
    check_feasible(record, replace(spec, recovery=trained), ("recover",))
    layout = materials.layout(trial.plan.levels)
    adapter_ranks(spec.recovery, layout)
    compute_bytes = materials.device.compute_dtype.itemsize
    found = estimate_document(layout, trial.plan, spec.recovery, compute_bytes)
    document = {"run_id": record.run_id, "trial": trial.number, **found}
    _print(arguments, document, estimate_lines(document))


def _evaluate(arguments: Namespace) -> None:
    if not is_beside(arguments):
        _continue(arguments)
        return
    if arguments.copy:
        raise BadInputError(
            "--copy was given with what is measured beside the line, which takes nothing from a "
            "run. Leave it out."
        )
    store = _store(arguments)
    document, lines = run_evaluate(arguments, store, lambda id_: _line(arguments, store, id_))
    _print(arguments, document, lines)


def _compare(arguments: Namespace) -> None:
    store = _store(arguments)
    record = store.read(arguments.run_id)
    spec = overlay(record.spec, arguments).pruning
    check_alone(store, record.run_id)
    line = _line(arguments, store, record.run_id)
    with store.writing(record.run_id):
        line.compare(spec)
    found = store.read(record.run_id).comparison
    if found is not None:
        _print(arguments, comparison_document(found), comparison_lines(found))


def _line(
    arguments: Namespace, store: RunStore, run_id: str, show: OnProgress | None = None
) -> Line:
    """Return the line of a run on the device that was asked for; None shows as most commands."""
    from qpruner_core.models.device import pick_device  # noqa: PLC0415 - loads torch
    from qpruner_core.pipeline import Line  # noqa: PLC0415 - loads torch

    def tell(progress: Progress) -> None:
        store.append_event(run_id, progress)
        if not arguments.quiet:
            (show or _show)(progress)

    kind, _, card = arguments.device.partition(":")
    if card:
        # Before CUDA is first touched: the card that is left is then the only one.
        os.environ["CUDA_VISIBLE_DEVICES"] = card
    return Line(store, run_id, pick_device(kind), tell)


def _compress(arguments: Namespace) -> None:
    _print(arguments, *run_compress(arguments, _show))


def _reproduce(arguments: Namespace) -> None:
    def line_of(store: RunStore, run_id: str, show: OnProgress) -> Line:
        return _line(arguments, store, run_id, show)

    _print(arguments, *run_reproduce(arguments, _store(arguments), line_of))


def _show(progress: Progress) -> None:
    values = "  ".join(f"{name} {value:.4g}" for name, value in progress.values.items())
    words = f"{progress.step:<9}{progress.done:>4}/{progress.total:<4} {progress.message} {values}"
    sys.stderr.write(words.rstrip() + "\n")


def _check_out(spec: RunSpec) -> None:
    if spec.export.out is not None and Path(spec.export.out).exists():
        raise OutputExistsError(
            f"The output folder {spec.export.out} exists already. Nothing is overwritten: name a "
            f"folder that does not exist, or remove that one."
        )


def _runs(arguments: Namespace) -> None:
    store = _store(arguments)
    if arguments.run_id is None:
        if arguments.delete:
            raise BadInputError("No run was named to delete. Name one of 'qpruner runs'.")
        records = store.list()
        lines = [line for record in records for line in report.run_lines(record)[:1]]
        documents = [report.run_document(record) for record in records]
        _print(arguments, documents, lines or ["No runs yet. Start one with 'qpruner run'."])
        return
    record = store.read(arguments.run_id)
    if arguments.delete:
        from qpruner_core.jobs import Jobs  # noqa: PLC0415 - the job engine takes a second

        Jobs(store.home).forget(record.run_id)
        store.delete(record.run_id)
        _print(arguments, {"deleted": record.run_id}, [f"Deleted {record.run_id}."])
        return
    _print(arguments, report.run_document(record), report.run_lines(record))


def _jobs(arguments: Namespace) -> None:
    _print(arguments, *steer_jobs(arguments, _store(arguments)))


def _worker(arguments: Namespace) -> None:
    from qpruner_core.worker import main as work  # noqa: PLC0415 - loads torch

    given = ["--device", arguments.device]
    for name in ("home", "database"):
        if getattr(arguments, name):
            given += [f"--{name}", getattr(arguments, name)]
    work(given)


def _doctor(arguments: Namespace) -> None:
    findings = examine(_store(arguments))
    lines = [f"{'ok ' if f['ok'] else 'NO '} {f['name']}: {f['found']}" for f in findings]
    _print(arguments, {"findings": findings}, lines)
    bad = [finding for finding in findings if not finding["ok"]]
    if bad:
        raise BadInputError(
            "; ".join(f"{f['name']}: found {f['found']}, needed {f['needed']}" for f in bad) + "."
        )

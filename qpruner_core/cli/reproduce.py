"""``qpruner reproduce``: the paper's table on any model, in a folder that the same command goes on
with.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from qpruner_core.cli.queued import check_alone, follow
from qpruner_core.cli.reproduce_options import data_spec, reproduction_spec
from qpruner_core.cli.specs import model_spec
from qpruner_core.domain.footprint import dense_bytes
from qpruner_core.domain.progress import OnProgress, Progress, silent
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.reproduction import Reproduction, ReproductionSpec
from qpruner_core.domain.reproduction_table import csv, document, latex, markdown
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import BadInputError, OutputExistsError, QPrunerError
from qpruner_core.inspection import inspect_model
from qpruner_core.store.codec import to_plain
from qpruner_core.store.files import write_whole
from qpruner_core.store.records import RunStore

if TYPE_CHECKING:
    from qpruner_core.pipeline import Line

DOCUMENT = "reproduction.json"
"""In the folder of a table: which run holds it, and the table as one document."""
WRITERS: Mapping[str, Callable[[Reproduction], str]] = {
    "table.csv": csv,
    "table.md": markdown,
    "table.tex": latex,
}
SHOW_EVERY_SECONDS = 5.0
"""How often a report is shown that says no more than that work goes on."""
LineOf = Callable[[RunStore, str, OnProgress], "Line"]
"""Builds the line of a run on the device that was asked for, which reports to somebody."""


def run_reproduce(
    arguments: Namespace, store: RunStore, line_of: LineOf
) -> tuple[dict[str, Any], list[str]]:
    """Make the table, or go on with it; return its JSON document and its lines for a person.

    Raises:
        BadInputError: The folder holds a table that was begun with other arguments, or in another
            home.
        OutputExistsError: The folder holds something else.
    """
    out = Path(arguments.out).expanduser().absolute()
    card = inspect_model(model_spec(arguments))
    asked = reproduction_spec(arguments, dense_bytes(card.layout))
    data = data_spec(arguments)
    name = arguments.name or f"{card.title}, {asked.setting}"
    run = RunSpec(model=model_spec(arguments), data=data, recovery=asked.recovery, name=name)
    begun = _begun(store, out, run, asked)
    show = silent if arguments.quiet else _Shown()
    with _said_how_to_go_on():
        if arguments.queue:
            record = begun or _checked(store, run, asked)
            _write(store, out, record.run_id)
            _follow(store, out, record.run_id, asked, show)
        else:
            _here(store, out, begun, run, asked, lambda run_id: line_of(store, run_id, show))
    return _finished(store, out)


def _here(
    store: RunStore,
    out: Path,
    begun: RunRecord | None,
    run: RunSpec,
    asked: ReproductionSpec,
    line_of: Callable[[str], Line],
) -> None:
    """Make the table in this process; a run that is refused at once is not kept."""
    if begun is not None:
        check_alone(store, begun.run_id)
    record = begun or store.create(run)
    line = line_of(record.run_id)
    with store.writing(record.run_id):
        try:
            line.reproduce_begin(asked)
        except QPrunerError:
            if begun is None:
                store.delete(record.run_id)
            raise
        _write(store, out, record.run_id)
        n_rows = -1
        while line.reproduce_next("this command"):
            n_rows = _write_new(store, out, record.run_id, n_rows)
        _write(store, out, record.run_id)


def _checked(store: RunStore, run: RunSpec, asked: ReproductionSpec) -> RunRecord:
    """Return a new run for a table that a worker is to make, unless it cannot.

    Raises:
        QPrunerError: It would be refused there at once.
    """
    # Looks at widths with NumPy; all that comes along takes a second.
    from qpruner_core.pipeline.reproduction_runs import check_table  # noqa: PLC0415

    check_table(RunRecord(run_id="", created_at="", spec=run), asked)
    return store.create(run)


def _follow(
    store: RunStore, out: Path, run_id: str, asked: ReproductionSpec, show: OnProgress
) -> None:
    """Put the table on the queue, unless it is there, and follow it to its end.

    Raises:
        QPrunerError: It was refused, failed, or was stopped.
    """
    # The job engine takes a second.
    from qpruner_core.jobs import REPRODUCE, Jobs, is_under_way  # noqa: PLC0415

    jobs = Jobs(store.home)
    under_way = [job for job in jobs.list(run_id) if job.kind == REPRODUCE and is_under_way(job)]
    job_id = under_way[0].job_id if under_way else jobs.start_reproduce(run_id, asked)
    if not jobs.workers():
        sys.stderr.write(
            "No worker runs yet; 'qpruner worker' starts one. Ctrl-C leaves the table on the "
            "queue.\n"
        )
    n_rows = -1

    def tell(progress: Progress) -> None:
        nonlocal n_rows
        show(progress)
        n_rows = _write_new(store, out, run_id, n_rows)

    job = follow(jobs, store, job_id, tell)
    _write(store, out, run_id)
    if job.status == "failed":
        raise QPrunerError(job.error)
    if job.status == "cancelled":
        raise QPrunerError(
            f"The table of run {run_id} was stopped; what was measured is kept. Go on with the "
            f"same command, or resume its job on the Jobs page."
        )


# the folder --------------------------------------------------------------------------------------


def _begun(store: RunStore, out: Path, run: RunSpec, asked: ReproductionSpec) -> RunRecord | None:
    """Return the run whose table the folder holds; None where it holds nothing."""
    path = out / DOCUMENT
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputExistsError(
                f"{out} exists and holds no {DOCUMENT}. Nothing is overwritten: name a folder "
                f"that does not exist or is empty, or that of a table that was begun."
            )
        return None
    run_id = _run_id(path)
    if not store.folder(run_id).is_dir():
        raise BadInputError(
            f"{path} is of run {run_id}, which is not in {store.home}. Name its home by --home, "
            f"or another folder for a new table."
        )
    record = store.read(run_id)
    differing = _differing(record, run, asked)
    if differing:
        raise BadInputError(
            f"The table in {out} was begun with other arguments ({', '.join(differing)}). Repeat "
            f"those it was begun with to go on, or name another folder for a new table."
        )
    return record


def _run_id(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{path} names no run of a table. Restore it, or name another folder."
        ) from error


def _differing(record: RunRecord, run: RunSpec, asked: ReproductionSpec) -> list[str]:
    """Return the names of what a table was begun with and what is asked for otherwise now."""
    parts: list[tuple[Any, Any, str]] = [
        (record.spec.model, run.model, "model "),
        (record.spec.data, run.data, "data "),
    ]
    if record.reproduction is not None:
        parts.append((record.reproduction.spec, asked, ""))
    found: list[str] = []
    for known, wanted, where in parts:
        before, now = to_plain(known), to_plain(wanted)
        for key in before:
            if key == "recovery" and before[key] != now[key]:
                found += [f"recovery {k}" for k, v in before[key].items() if now[key][k] != v]
            elif before[key] != now[key]:
                found.append(f"{where}{key}")
    return [name.replace("_", " ") for name in found]


def _write_new(store: RunStore, out: Path, run_id: str, n_rows: int) -> int:
    """Write the table where it has more rows than were written; return how many it has."""
    table = store.read(run_id).reproduction
    found = len(table.rows) if table is not None else n_rows
    if found != n_rows:
        _write(store, out, run_id)
    return found


def _write(store: RunStore, out: Path, run_id: str) -> None:
    """Write the table as far as it has come, each file whole."""
    out.mkdir(parents=True, exist_ok=True)
    table = store.read(run_id).reproduction
    made = {"run_id": run_id, "home": str(store.home)}
    if table is not None:
        made |= document(table)
        for name, write in WRITERS.items():
            write_whole(out / name, write(table).encode())
    write_whole(out / DOCUMENT, (json.dumps(made, indent=2) + "\n").encode())


def _finished(store: RunStore, out: Path) -> tuple[dict[str, Any], list[str]]:
    found = json.loads((out / DOCUMENT).read_text(encoding="utf-8"))
    table = store.read(found["run_id"]).reproduction
    lines = [markdown(table).rstrip()] if table is not None else []
    written = ", ".join((*WRITERS, DOCUMENT))
    return found, [*lines, "", f"Run {found['run_id']}; {written} in {out}"]


# reports -----------------------------------------------------------------------------------------


class _Shown:
    """Shows reports on stderr: every new piece, and of a long one that it goes on."""

    def __init__(self) -> None:
        self._last, self._at = "", 0.0

    def __call__(self, progress: Progress) -> None:
        piece, now = progress.message.partition(":")[0].rstrip("0123456789 of"), monotonic()
        if piece == self._last and now - self._at < SHOW_EVERY_SECONDS:
            return
        self._last, self._at = piece, now
        values = dict(progress.values)
        left = time_left(values.pop("seconds_left", None))
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        words = f"{progress.done:>4}/{progress.total:<4} {progress.message}  {numbers}  {left}"
        sys.stderr.write(words.rstrip() + "\n")


def time_left(seconds: float | None) -> str:
    """Return how long the rest takes, in words; empty while that is not known."""
    if seconds is None:
        return ""
    if seconds < 90.0:
        return f"about {max(1, round(seconds))} s left"
    minutes = round(seconds / 60.0)
    if minutes < 120:
        return f"about {minutes} min left"
    return f"about {minutes // 60} h {minutes % 60} min left"


@contextmanager
def _said_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("The same command with the same folder goes on with the table.\n")
        raise


def reproduce_arguments(parser: ArgumentParser) -> None:
    """Add what says where the table goes and where it is made."""
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder of the table; the same command with the same folder goes on with it",
    )
    parser.add_argument("--name", default="", help="what you call the run that holds the table")
    parser.add_argument(
        "--queue",
        action="store_true",
        help="put the table on the queue and follow it ('qpruner worker' makes it; --device is "
        "the worker's then); by default it is made in this process",
    )

"""One folder per run, one writer per file.

runs/<run_id>/spec.json       what was asked for at first; written once
              record.json     all slots; replaced as a whole by whoever runs the line
              events.jsonl    progress, appended
              worker.log      appended
              .lock           held by whoever writes the run; shared by workers that measure
                              trials of its search (.lock.next by whoever wants it alone next)
              values/         intermediate values of a step, replaced as a whole
              artifacts/      arrays by SHA-256; folders that a step writes (adapter, export)
              uploads/        files that a person gave it; written by the app, never changed
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np

from qpruner_core.domain.harness import still_true
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import MEASURED, STEPS, RunRecord
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import BadInputError
from qpruner_core.store import artifacts, events, locks, studies, uploads
from qpruner_core.store.codec import from_json, to_json
from qpruner_core.store.events import Event
from qpruner_core.store.files import last_lines, link_tree, link_whole, size_bytes, write_whole
from qpruner_core.store.names import check_plain, check_run_id, is_run_id, new_run_id

T = TypeVar("T")
LINE_CHECKPOINT = Path("kept", "adapter-checkpoint")
"""In a run's folder: where the training of the line goes on from, once it was stopped."""
Records = list[RunRecord]
Events = list[Event]
"""Named here, as the store has methods of the names that Python would use."""


class RunStore:
    """The runs of one home folder; safe to use from several threads, and from several processes.

    The folder is made when the first run is.

    Args:
        home: The home folder.
        database: URL of the job database, where studies are kept too if it is PostgreSQL;
            ``QPRUNER_DATABASE`` or SQLite in the home for None.
    """

    def __init__(self, home: Path, database: str | None = None) -> None:
        self._home = home.expanduser().absolute()
        self._database = database
        self._known: dict[str, tuple[tuple[int, int, int], RunRecord | BadInputError]] = {}

    @property
    def home(self) -> Path:
        """The home folder; absolute."""
        return self._home

    @property
    def runs(self) -> Path:
        """The folder that holds one folder per run."""
        return self._home / "runs"

    # one run -----------------------------------------------------------------------------------

    def create(self, spec: RunSpec) -> RunRecord:
        """Make the folder of a new run and return its empty record.

        Raises:
            StorageFullError: The disk does not hold it; no run is left behind.
        """
        run_id = new_run_id(spec.name or Path(spec.model.source).name, datetime.now(UTC))
        record = RunRecord(run_id=run_id, created_at=events.now(), spec=spec)
        return self._found(record, {})

    def read(self, run_id: str) -> RunRecord:
        """Return the record as it stands on disk.

        Raises:
            BadInputError: There is no such run, or its record cannot be read.
        """
        path = self.folder(run_id) / "record.json"
        try:
            found = path.stat()
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            known = self._known.get(run_id)
            # What cannot be read stays so until the file changes, and may be large too.
            record = known[1] if known is not None and known[0] == stamp else _record(path, run_id)
        except FileNotFoundError as error:
            raise self._missing(run_id) from error
        self._known[run_id] = (stamp, record)
        if isinstance(record, BadInputError):
            raise BadInputError(*record.args)
        return record

    def write(self, record: RunRecord) -> None:
        """Replace the record of a run as a whole.

        Raises:
            BadInputError: The run has been deleted.
            StorageFullError: The disk does not hold it; the old record stays.
        """
        folder = self._existing(record.run_id)
        write_whole(folder / "record.json", to_json(record, indent=1).encode())

    @contextmanager
    def writing(self, run_id: str, *, shared: bool = False) -> Iterator[None]:
        """Be the only writer of a run for as long as the block runs; other runs are not concerned.

        Args:
            run_id: The run.
            shared: Change nothing of the run but its study, progress and log, beside others that
                do so; a writer of the record is kept out, and is let in first where it waits.

        Raises:
            BadInputError: There is no such run.
            NotReadyError: Another process writes it, or another thread; nothing is waited for.
        """
        lock = self._existing(run_id) / ".lock"
        with locks.held(lock, f"run {run_id}", shared=shared):
            yield

    @contextmanager
    def next_to_write(self, run_id: str) -> Iterator[bool]:
        """Hold up those who would share a run's lock, while waiting to write it alone.

        Yields:
            Whether they are held up; if not, ask again.

        Raises:
            BadInputError: There is no such run.
        """
        with locks.is_next(self._existing(run_id) / ".lock") as is_so:
            yield is_so

    def delete(self, run_id: str) -> None:
        """Delete a run with everything in it, its studies included.

        Raises:
            BadInputError: There is no such run.
        """
        folder = self._existing(run_id)
        studies.delete_studies(self._home, run_id, self._database)
        # Renamed first, so that nobody meets a run of which half is gone.
        gone = folder.with_name(f".gone-{run_id}")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone)
        self._known.pop(run_id, None)

    def fork(self, run_id: str, before_step: str, name: str | None = None) -> RunRecord:
        """Return a new run that stands where this one stood before a step; artifacts are linked.

        What was made beside the line, a model written layer by layer or the paper's table, stays
        with this run alone.

        Args:
            run_id: The run.
            before_step: The first step that the new run lacks.
            name: What the new run is called; None for the same.

        Raises:
            BadInputError: There is no such run or step.
        """
        if before_step not in STEPS:
            raise BadInputError(
                f"A run cannot be forked before {before_step!r}. Choose one of {', '.join(STEPS)}."
            )
        found = self.read(run_id)
        emptied = STEPS[STEPS.index(before_step) :]
        spec = found.spec if name is None else replace(found.spec, name=name)
        kept = replace(
            found,
            comparison=found.comparison if "score" not in emptied else None,
            compressed=None,
            reproduction=None,
            harness=still_true(found.harness, before_step, STEPS),
            spec=spec,
            run_id=new_run_id(spec.name or Path(spec.model.source).name, datetime.now(UTC)),
            created_at=events.now(),
            seconds={step: value for step, value in found.seconds.items() if step not in emptied},
            **dict.fromkeys(emptied),
        )
        spec = uploads.moved(kept.spec, self.folder(run_id), self.folder(kept.run_id))
        kept = replace(kept, spec=spec)
        found = self._found(*self._relocated(kept, self.folder(run_id)))
        self._take_along(run_id, found.run_id)
        return found

    def folder(self, run_id: str) -> Path:
        """Return the folder of a run, which may not be there.

        Raises:
            BadInputError: The text is no run's id.
        """
        return self.runs / check_run_id(run_id)

    # all runs ----------------------------------------------------------------------------------

    def list(self) -> Records:
        """Return the records that can be read, newest first; `broken` names the others."""
        return self._survey()[0]

    def broken(self) -> dict[str, str]:
        """Return the name of every folder among the runs that holds no readable record -> why."""
        return self._survey()[1]

    def disk_usage(self, run_id: str) -> int:
        """Return the bytes of a run's files; those shared with a fork are counted in both."""
        return size_bytes(self._existing(run_id))

    # progress and log --------------------------------------------------------------------------

    def append_event(self, run_id: str, progress: Progress) -> Event:
        """Append a report of progress.

        Raises:
            BadInputError: The run has been deleted.
        """
        return events.append(self._existing(run_id) / "events.jsonl", progress)

    def events(self, run_id: str, last: int | None = None) -> Events:
        """Return the last reports, oldest first; all for None."""
        return events.read(self.folder(run_id) / "events.jsonl", last)

    def log_path(self, run_id: str) -> Path:
        """Return where the worker logs what it does for a run; may not be there yet."""
        return self.folder(run_id) / "worker.log"

    def log(self, run_id: str, last: int = 200) -> str:
        """Return the last lines of the worker's log; empty when nothing was logged."""
        return "\n".join(last_lines(self.log_path(run_id), last))

    # values and artifacts ----------------------------------------------------------------------

    def write_value(self, run_id: str, name: str, value: object) -> None:
        """Keep an intermediate value of a step under a name; replaces the one before."""
        folder = self._existing(run_id) / "values"
        folder.mkdir(exist_ok=True)
        write_whole(folder / f"{check_plain(name)}.json", to_json(value).encode())

    def read_value(self, run_id: str, name: str, cls: type[T]) -> T | None:
        """Return the value kept under a name; None when there is none."""
        path = self._existing(run_id) / "values" / f"{check_plain(name)}.json"
        try:
            return from_json(cls, path.read_bytes())
        except FileNotFoundError:
            return None

    def value_names(self, run_id: str, pattern: str) -> tuple[str, ...]:
        """Return the names of kept values that match, with ``*`` for anything."""
        found = (self._existing(run_id) / "values").glob(f"{pattern}.json")
        return tuple(sorted(path.stem for path in found))

    def write_arrays(self, run_id: str, stem: str, arrays: Mapping[str, np.ndarray]) -> str:
        """Write arrays and return the artifact's name, ``<stem>-<SHA-256>.npz``.

        Raises:
            StorageFullError: The disk does not hold them.
        """
        return artifacts.write_arrays(self._artifacts(run_id), stem, arrays)

    def read_arrays(self, run_id: str, artifact: str) -> dict[str, np.ndarray]:
        """Return the arrays of an artifact, name -> array as it was given.

        Raises:
            BadInputError: The name is no artifact's, or the file is damaged.
            NotReadyError: The file is gone.
        """
        return artifacts.read_arrays(self._artifacts(run_id), artifact)

    def artifact_folder(self, run_id: str, stem: str) -> Path:
        """Return the path of a new artifact folder, which the caller makes.

        All folders that the record does not name are removed, of whatever stem: attempts that were
        killed, and results that were emptied from the record or replaced. So only the run's writer
        may ask, and one folder must be in the record before the next is asked for.
        """
        parent, record = self._artifacts(run_id), self.read(run_id)
        check_plain(stem)
        named = {record.export.path} if record.export else set()
        named |= {record.recover.adapter} if record.recover else set()
        named |= {record.compressed.path} if record.compressed else set()
        used = {Path(path).name for path in named}
        for old in parent.iterdir():
            if old.is_dir() and old.name not in used:
                shutil.rmtree(old)
        taken = {path.name for path in parent.iterdir()}
        return parent / next(
            name for n in range(1, len(taken) + 2) if (name := f"{stem}-{n}") not in taken
        )

    def study_url(self) -> str:
        """Return the storage URL of the studies; a study's name begins with its run's id."""
        return studies.study_url(self._home, self._database)

    # helpers -----------------------------------------------------------------------------------

    def _missing(self, run_id: str) -> BadInputError:
        return BadInputError(
            f"There is no run {run_id} in {self._home}; it may have been deleted. Choose another "
            f"one on the Runs page or of 'qpruner runs'."
        )

    def _existing(self, run_id: str) -> Path:
        folder = self.folder(run_id)
        if not folder.is_dir():
            raise self._missing(run_id)
        return folder

    def _artifacts(self, run_id: str) -> Path:
        folder = self._existing(run_id) / "artifacts"
        folder.mkdir(exist_ok=True)
        return folder

    def _found(self, record: RunRecord, linked: Mapping[str, Path]) -> RunRecord:
        """Build a run's folder aside and put it in place in one stroke."""
        aside = self.runs / f".new-{record.run_id}"
        (aside / "artifacts").mkdir(parents=True)
        try:
            for name, source in linked.items():
                link_tree(source, aside / "artifacts" / name)
            write_whole(aside / "spec.json", to_json(record.spec, indent=1).encode())
            write_whole(aside / "record.json", to_json(record, indent=1).encode())
            aside.rename(self.folder(record.run_id))
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return record

    def _relocated(self, record: RunRecord, source: Path) -> tuple[RunRecord, dict[str, Path]]:
        """Return the record with paths of its own, and artifact -> its place in the old run."""
        linked = {}
        if record.score is not None:
            linked[record.score.unit_scores] = source / "artifacts" / record.score.unit_scores
        if record.prune is not None and record.prune.biases:
            linked[record.prune.biases] = source / "artifacts" / record.prune.biases
        if record.recover is not None and record.recover.adapter:
            name = Path(record.recover.adapter).name
            linked[name] = source / "artifacts" / name
            if Path(record.recover.adapter).is_absolute():
                own = self.folder(record.run_id) / "artifacts" / name
                # What was taken from the weights for an adapter lies in its folder.
                shift = record.recover.shift and str(own / Path(record.recover.shift).name)
                moved = replace(record.recover, adapter=str(own), shift=shift)
                record = replace(record, recover=moved)
        return record, {name: path for name, path in linked.items() if path.exists()}

    def _take_along(self, source: str, target: str) -> None:
        """Link into a copy what was measured of single plans, so that none is measured twice, the
        files that the run was given, and where its training goes on from if it was stopped.
        """
        given = self.folder(source) / uploads.FOLDER
        if given.is_dir():
            link_tree(given, self.folder(target) / uploads.FOLDER)
        recovered = self.read(target).recover
        if recovered is not None and not recovered.is_complete:
            link_whole(*(self.folder(run) / LINE_CHECKPOINT for run in (source, target)))
        values = self.folder(target) / "values"
        for path in (self.folder(source) / "values").glob(f"{MEASURED}*.json"):
            values.mkdir(exist_ok=True)
            link_tree(path, values / path.name)

    def _survey(self) -> tuple[Records, dict[str, str]]:
        good, bad = [], {}
        folders = [path for path in self.runs.iterdir()] if self.runs.is_dir() else []
        for path in folders:
            if path.name.startswith("."):
                continue
            if not is_run_id(path.name):
                bad[path.name] = f"{path} is no run of ours. Move it out of the home folder."
                continue
            # A run may be deleted while we look: then it is simply not there.
            with suppress(FileNotFoundError):
                try:
                    good.append(self.read(path.name))
                except BadInputError as error:
                    if path.exists():
                        bad[path.name] = str(error)
        good.sort(key=lambda record: (record.created_at, record.run_id), reverse=True)
        return good, bad


def _record(path: Path, run_id: str) -> RunRecord | BadInputError:
    """Return what a file holds, or what is wrong with it."""
    try:
        return from_json(RunRecord, path.read_bytes())
    except BadInputError as error:
        return BadInputError(f"The record of run {run_id} in {path} cannot be read. {error}")

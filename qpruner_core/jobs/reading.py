"""What is known of the jobs of a home folder: the part of `Jobs` that changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSClient, WorkflowStatus
from dbos import error as engine_errors
from sqlalchemy.exc import SQLAlchemyError

from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import Trial
from qpruner_core.errors import BadInputError, NotReadyError, QPrunerError
from qpruner_core.jobs.engine import (
    APPLICATION,
    KILLED_TOO_OFTEN,
    PROGRESS,
    QUEUE,
    QUEUE_LIMITS,
    REFUSALS,
    STATUSES,
    TRIALS,
    WORKFLOWS_VERSION,
    Job,
    SearchWorker,
    iso,
    serializer,
)
from qpruner_core.store.codec import from_plain
from qpruner_core.store.events import Event
from qpruner_core.store.home import database_url
from qpruner_core.store.records import RunStore
from qpruner_core.store.workers import WorkerInfo, is_gone, living_workers

Found = list[Job]
"""Named here, as the reader has a method of the name that Python would use."""


class JobReader:
    """The jobs of one home folder, to look at; see `client.Jobs`."""

    def __init__(self, home: Path, database: str | None = None) -> None:
        self._store = RunStore(home, database)
        self._url = database_url(self._store.home, database)
        self._store.home.mkdir(parents=True, exist_ok=True)
        with self._asking():
            DBOS.migrate(self._url)
            self._client = DBOSClient(
                system_database_url=self._url,
                serializer=serializer(),
                application_name=APPLICATION,
                retry_connection_errors=False,
            )
            self._client.register_queue(QUEUE, **QUEUE_LIMITS, on_conflict="never_update")

    def close(self) -> None:
        """Let go of the database."""
        self._client.destroy()

    def list(self, run_id: str | None = None) -> Found:
        """Return the jobs of a run, or of all runs, newest first."""
        prefix = f"{self._store.folder(run_id).name}." if run_id is not None else None
        with self._asking():
            rows = self._client.list_workflows(
                workflow_id_prefix=prefix, sort_desc=True, application_name=APPLICATION
            )
            return self._jobs(rows)

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            BadInputError: There is no such job.
        """
        with self._asking():
            rows = self._client.list_workflows(workflow_ids=[job_id])
            if not rows:
                raise self._missing(job_id)
            return self._jobs(rows)[0]

    def result(self, job_id: str) -> dict[str, Any]:
        """Return what a finished job gave.

        Of *measure* that is the plain form of a `Trial`; of *generate* the texts ``prompt``,
        ``original`` and ``compressed``; of *compress* ``path`` and ``size_bytes``; of the other
        kinds nothing.

        Raises:
            BadInputError: There is no such job.
            NotReadyError: It has not finished.
            QPrunerError: It failed; the message says why.
        """
        job = self.get(job_id)
        if job.status == "failed":
            raise QPrunerError(job.error)
        if job.status != "done":
            raise NotReadyError(
                f"The job {job_id} is {job.status}; it gives a result when it is done. Wait for "
                f"it, or resume it if it was cancelled."
            )
        with self._asking():
            output = self._client.list_workflows(workflow_ids=[job_id])[0].output
        return dict(output or {})

    def workers(self) -> tuple[WorkerInfo, ...]:
        """Return the workers that are alive, by name."""
        return living_workers(self._store.home)

    def search_workers(self, run_id: str, trials: Sequence[Trial]) -> tuple[SearchWorker, ...]:
        """Return who takes part in the search of a run now, by name.

        Args:
            run_id: The run.
            trials: The trials of its study as they stand now, running ones included.
        """
        measures = {trial.worker: trial.number for trial in trials if trial.state == "running"}
        found = [
            SearchWorker(
                worker=job.worker,
                device=job.device,
                job_id=job.job_id,
                trial=measures.get(job.worker),
                is_gone=job.worker_is_gone,
            )
            for job in self.list(run_id)
            if job.status == "running" and _searches(job)
        ]
        return tuple(sorted(found, key=lambda each: each.worker))

    # helpers -------------------------------------------------------------------------------------

    def _jobs(self, rows: Sequence[WorkflowStatus]) -> Found:
        devices = {worker.name: worker.device for worker in self.workers()}
        return [self._job(row, devices) for row in rows if row.workflow_id.count(".") == 2]

    def _job(self, row: WorkflowStatus, devices: dict[str, str]) -> Job:
        run_id, kind, _ = row.workflow_id.split(".")
        payload = payload_of(row)
        worker = row.executor_id or ""
        status = STATUSES[row.status]
        error = str(row.error) if row.error is not None else ""
        if row.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
            error = KILLED_TOO_OFTEN
        return Job(
            job_id=row.workflow_id,
            kind=kind,
            run_id=run_id,
            steps=tuple(payload.get("steps", ())),
            status=status,
            progress=self._progress(row.workflow_id, run_id) if status == "running" else None,
            error=error,
            created_at=iso(row.created_at),
            updated_at=iso(row.updated_at),
            worker=worker,
            device=devices.get(worker, worker.rpartition("/")[2]),
            worker_is_gone=status == "running" and is_gone(self._store.home, worker),
            version=row.app_version or WORKFLOWS_VERSION,
            is_refused=status == "failed" and getattr(row.error, "name", "") in REFUSALS,
        )

    def _progress(self, job_id: str, run_id: str) -> Progress | None:
        """Return the newest of what the job's event and the run's events say."""
        told = self._client.get_event(job_id, PROGRESS, timeout_seconds=0)
        if told is None:
            return None
        first = from_plain(Event, told)
        later = [event for event in self._store.events(run_id, last=1) if event.at >= first.at]
        return (later or [first])[-1].progress

    def _missing(self, job_id: str) -> BadInputError:
        return BadInputError(
            f"There is no job {job_id!r}; it may have been deleted with its run. "
            f"Choose another one on the Jobs page."
        )

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn a database that does not answer into a sentence."""
        try:
            yield
        except (SQLAlchemyError, engine_errors.DBOSInitializationError) as error:
            # The URL may carry a password, which neither message shows.
            place = self._url.rpartition("@")[2]
            raise NotReadyError(
                f"The job database {place} does not answer ({type(error).__name__}). Check that "
                f"it runs and that QPRUNER_DATABASE names it, then try again."
            ) from error


def payload_of(row: WorkflowStatus) -> dict[str, Any]:
    """Return what a job was started with."""
    return dict(row.input["args"][0]) if row.input and row.input["args"] else {}


def _searches(job: Job) -> bool:
    """Whether a running job is at the trials of a search."""
    told = job.progress
    return job.kind == TRIALS or (
        job.kind == "line" and told is not None and told.step == "search"
    )

"""What a page or a script asks of the job engine."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSClient, EnqueueOptions, WorkflowStatus
from dbos import error as engine_errors
from sqlalchemy.exc import SQLAlchemyError

from qpruner_core.catalog import check_spec
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import STEPS
from qpruner_core.domain.spec import PruningSpec, RunSpec
from qpruner_core.errors import BadInputError, NotReadyError, QPrunerError
from qpruner_core.jobs.engine import (
    APPLICATION,
    BEGIN,
    COMPARE_BEGIN,
    KILLED_TOO_OFTEN,
    PROGRESS,
    QUEUE,
    QUEUE_LIMITS,
    STATUSES,
    Job,
    iso,
    serializer,
)
from qpruner_core.store.codec import from_plain, to_plain
from qpruner_core.store.events import Event
from qpruner_core.store.home import database_url
from qpruner_core.store.records import RunStore
from qpruner_core.store.workers import WorkerInfo, is_gone, living_workers

Found = list[Job]
"""Named here, as the client has a method of the name that Python would use."""


class Jobs:
    """The jobs of one home folder; safe to use from several threads.

    The engine's tables are made if they are missing, so that the app can start before any worker.
    """

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

    # starting ------------------------------------------------------------------------------------

    def start_line(self, run_id: str, steps: tuple[str, ...], spec: RunSpec) -> str:
        """Put steps of a run on the queue, to fill their slots anew; return the job's id.

        Raises:
            BadInputError: There is no such run, or the steps are none, unknown or out of order.
            UnknownNameError: The spec names something that no catalogue entry carries.
        """
        if not steps or list(steps) != [step for step in STEPS if step in steps]:
            raise BadInputError(
                f"The steps {', '.join(steps) or '(none)'} are no part of the line. Name one or "
                f"more of {', '.join(STEPS)}, in this order, each once."
            )
        check_spec(spec)
        return self._start("line", run_id, steps=list(steps), spec=to_plain(spec))

    def start_finish(self, run_id: str) -> str:
        """Ask to end a stopped search with what it has measured; return the job's id.

        Raises:
            BadInputError: There is no such run, or its search has ended already.
        """
        if self._store.read(run_id).search is not None:
            raise BadInputError(
                f"The search of run {run_id} has ended; its plans are on the Results page. To "
                f"measure more, start a search with more trials: it goes on with those measured."
            )
        return self._start("finish", run_id, steps=["search"])

    def start_measure(self, run_id: str, plan: PrecisionPlan) -> str:
        """Put the measurement of a plan made by hand on the queue and return the job's id.

        Raises:
            BadInputError: There is no such run.
        """
        return self._start("measure", run_id, plan=to_plain(plan))

    def start_compare(self, run_id: str, spec: PruningSpec) -> str:
        """Ask to prune the dense model by every scored unit criterion and to measure what is
        left, with compensation ``"bias"`` each without and with it; return the job's id.

        The rows come into the run's record one by one. What an earlier comparison that asked for
        the same has measured is kept.

        Args:
            run_id: A run that has been scored.
            spec: Ratio, scope, shape and all else that the rows share; its criterion does not
                matter.

        Raises:
            BadInputError: There is no such run.
            NotReadyError: It has not been scored.
        """
        if self._store.read(run_id).score is None:
            raise NotReadyError(
                f"The run {run_id} has no importance scores yet, and a comparison needs them. "
                f"Score it first, by every criterion that is to be compared."
            )
        return self._start("compare", run_id, pruning=to_plain(spec))

    def start_compress(self, run_id: str, spec: RunSpec) -> str:
        """Ask to prune and write the run's model layer by layer, without loading it whole; return
        the job's id.

        One precision in ``spec.search.precisions`` is given to every Linear; of several, the
        memory budget chooses. The outcome comes into the run's record; no slot of the line is
        touched.

        Raises:
            BadInputError: There is no such run.
            UnknownNameError: The spec names something that no catalogue entry carries.
        """
        check_spec(spec)
        return self._start("compress", run_id, spec=to_plain(spec))

    def start_generate(self, run_id: str, prompt: str, trial: int | None = None) -> str:
        """Ask the original and the compressed model to go on from a prompt; return the job's id.

        Raises:
            BadInputError: There is no such run.
        """
        return self._start("generate", run_id, prompt=prompt, trial=trial)

    # looking -------------------------------------------------------------------------------------

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

    # steering ------------------------------------------------------------------------------------

    def cancel(self, job_id: str) -> None:
        """Stop a job at its next step boundary (of a search: after the trial).

        Training stops within seconds and keeps what was learned. An ended job stays as it is.

        Raises:
            BadInputError: There is no such job.
        """
        self.get(job_id)
        with self._asking():
            self._client.cancel_workflow(job_id)

    def resume(self, job_id: str) -> None:
        """Go on with a cancelled or failed job at its first unfinished step.

        Raises:
            BadInputError: There is no such job, or `why_not_resumed` says why not.
        """
        job = self.get(job_id)
        why_not = self.why_not_resumed(job)
        if why_not:
            raise BadInputError(why_not)
        with self._asking():
            if job.status == "cancelled" or job.error == KILLED_TOO_OFTEN:
                self._client.resume_workflow(job_id, queue_name=QUEUE)
                return
            recorded = self._client.list_workflow_steps(job_id)
            failed = (step["function_id"] for step in recorded if step["error"] is not None)
            self._client.rewind_workflow(
                job_id,
                start_step=min(failed, default=1),
                queue_name=QUEUE,
                queue_partition_key=job.run_id,
            )

    def why_not_resumed(self, job: Job) -> str:
        """Return the sentence that says why a job cannot be resumed; empty if it can.

        The steps of a job follow the run's record, so a job whose record has since been given
        other settings would go on with those.
        """
        if job.status not in ("cancelled", "failed"):
            return (
                f"The job {job.job_id} is {job.status}; only a cancelled or failed job can be "
                f"resumed. Start the step again instead."
            )
        newer = self._replaced_by(job)
        if newer is not None:
            return (
                f"The job {job.job_id} is older than the job {newer.job_id} of this run "
                f"({newer.status}), which has taken its place. Go on with that one, or start the "
                f"step again: what was measured with equal settings is kept."
            )
        if self._asks_for_something_else(job):
            return (
                f"The job {job.job_id} was started with settings that the run no longer has: they "
                f"were changed by a command. Start the step again: what was measured with equal "
                f"settings is kept."
            )
        return ""

    def forget(self, run_id: str) -> None:
        """Cancel and remove all jobs of a run, before the run itself is deleted."""
        found = [job.job_id for job in self.list(run_id)]
        if found:
            with self._asking():
                self._client.cancel_workflows(found)
                self._client.delete_workflows(found)

    # helpers -------------------------------------------------------------------------------------

    def _replaced_by(self, job: Job) -> Job | None:
        """Return the newest later job that took the place of a job."""
        for other in self.list(job.run_id):
            if other.job_id == job.job_id:
                return None
            if other.replaces(job):
                return other
        return None

    def _asks_for_something_else(self, job: Job) -> bool:
        """Whether the record has another spec, or comparison, than the job's first step left."""
        first = {"line": BEGIN, "compare": COMPARE_BEGIN}.get(job.kind)
        with self._asking():
            recorded = self._client.list_workflow_steps(job.job_id)
            rows = self._client.list_workflows(workflow_ids=[job.job_id])
        left = next((step["output"] for step in recorded if step["function_name"] == first), None)
        if left is None:
            return False
        record = self._store.read(job.run_id)
        if job.kind == "line":
            return bool(left != to_plain(record.spec))
        wanted = from_plain(PruningSpec, _payload(rows[0])["pruning"])
        return record.comparison is None or not record.comparison.is_of(wanted)

    def _start(self, kind: str, run_id: str, **payload: Any) -> str:
        self._store.read(run_id)
        job_id = f"{run_id}.{kind}.{secrets.token_hex(4)}"
        options: EnqueueOptions = {
            "workflow_name": kind,
            "queue_name": QUEUE,
            "workflow_id": job_id,
            "queue_partition_key": run_id,
        }
        with self._asking():
            self._client.enqueue(options, {"run_id": run_id, **payload})
        return job_id

    def _jobs(self, rows: Sequence[WorkflowStatus]) -> Found:
        devices = {worker.name: worker.device for worker in self.workers()}
        return [self._job(row, devices) for row in rows if row.workflow_id.count(".") == 2]

    def _job(self, row: WorkflowStatus, devices: dict[str, str]) -> Job:
        run_id, kind, _ = row.workflow_id.split(".")
        payload = _payload(row)
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


def _payload(row: WorkflowStatus) -> dict[str, Any]:
    """Return what a job was started with."""
    return dict(row.input["args"][0]) if row.input and row.input["args"] else {}

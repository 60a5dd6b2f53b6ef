"""What the client and the workers agree on, and what a job is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dbos import DBOSPortableJSONSerializer

from qpruner_core.domain.progress import Progress

APPLICATION = "qpruner-studio"
QUEUE = "compute"
QUEUE_LIMITS: dict[str, Any] = {"worker_concurrency": 1, "partition_concurrency": 1}
"""One job per worker at a time, and one per run (the queue's partitions) over all workers."""
WORKFLOWS_VERSION = "2"
"""Raised when the order of a job's steps changes. A job that was begun under another one cannot go
on: workers stop it, and it is not resumed; its step is started again, which keeps what was
measured.
"""
TRIALS = "trials"
"""Kind of the jobs that measure trials of a line job's search beside it."""
PROGRESS = "progress"
"""The event under which a worker tells how far a job is, as the plain form of an `Event`."""
BEGIN = "begin"
"""The first step of a line job; it returns the spec that it left in the record, in plain form."""
COMPARE_BEGIN = "compare_begin"
"""The first step of a comparison; the record then has it."""
REPRODUCE = "reproduce"
"""Kind of the job that makes the paper's table, and name of the step of its reports."""
REPRODUCE_BEGIN = "reproduce_begin"
"""Its first step; the record then has the table that the job asks for."""
STATUSES = {
    "DELAYED": "queued",
    "ENQUEUED": "queued",
    "PENDING": "running",
    "SUCCESS": "done",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
REFUSALS = ("MergeRefusedError", "InfeasibleRatioError", "UnknownNameError")
"""Errors that the same settings meet again, so that their jobs are not resumed."""
KILLED_TOO_OFTEN = (
    "The worker was killed again and again while it ran this job, which was given up. Most often "
    "the machine ran out of memory: choose a smaller model or batch, then resume the job."
)


def serializer() -> DBOSPortableJSONSerializer:
    """Return what turns payloads, results and errors into JSON, not the engine's pickle."""
    return DBOSPortableJSONSerializer()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of work on the queue."""

    job_id: str
    kind: str
    """``"line"``, ``"trials"`` (of the search of a line job, on a further worker), ``"finish"``,
    ``"measure"``, ``"compare"``, ``"compress"``, ``"reproduce"`` or ``"generate"``.
    """
    run_id: str
    steps: tuple[str, ...]
    """The verbs of a line job, in order; *search* for finish; empty for the other kinds."""
    status: str
    """``"queued"``, ``"running"``, ``"done"``, ``"failed"`` or ``"cancelled"``."""
    progress: Progress | None
    """The newest report of a running job; None otherwise."""
    error: str
    """Why it failed, as a sentence; empty otherwise."""
    created_at: str
    """ISO 8601, UTC."""
    updated_at: str
    """ISO 8601, UTC; when its status last changed."""
    worker: str
    """Name of the worker that has it or had it; empty while it never ran."""
    device: str
    """Device of that worker; empty while it never ran."""
    worker_is_gone: bool = False
    """Whether it counts as running though its worker has ended: a worker that lives or starts
    takes it up.
    """
    version: str = WORKFLOWS_VERSION
    """Version of the workflows under which it was begun, or waits to be."""
    is_refused: bool = False
    """Whether it failed by one of `REFUSALS`: other settings are needed."""

    @property
    def group(self) -> str:
        """What a line job and the trials of its search have in common."""
        return self.job_id.rpartition(".")[2].partition("-")[0]

    def replaces(self, older: Job) -> bool:
        """Whether an older job of the same run must not go on, as this one took its place.

        A line gives the run the settings that its other jobs work by. There is one comparison,
        which scoring empties, and one model that was written layer by layer and one table
        of the paper's rows, which no line touches.
        """
        if self.status == "cancelled" and not self.worker:
            return False
        if older.kind in ("compress", REPRODUCE):
            return self.kind == older.kind
        if older.kind == "compare":
            scores = self.kind == "line" and not {"load", "score"}.isdisjoint(self.steps)
            return self.kind == "compare" or scores
        ends_search = self.kind == "finish" and self.status not in ("failed", "cancelled")
        return self.kind == "line" or (ends_search and older.kind in ("line", TRIALS))


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchWorker:
    """One worker that takes part in a search."""

    worker: str
    """Its name."""
    device: str
    job_id: str
    """The line job, or that of kind *trials*, which it works on."""
    trial: int | None
    """Number of the trial that it measures now; None between two, while it loads the model, and
    while it measures a baseline.
    """
    is_gone: bool
    """Whether it has ended; the others take up its trial, and a worker its job."""


def is_under_way(job: Job) -> bool:
    """Whether a job waits or runs."""
    return job.status in ("queued", "running")


def beside(job_id: str, number: int) -> str:
    """Return the id of the job that measures trials beside a line job, on a further worker.

    Args:
        job_id: The line job.
        number: Counts those jobs from 1.
    """
    run_id, _, token = job_id.split(".")
    return f"{run_id}.{TRIALS}.{token}-{number}"


def iso(milliseconds: int | None) -> str:
    """Return a moment of the engine's clock as ISO 8601, UTC."""
    moment = datetime.fromtimestamp((milliseconds or 0) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds")

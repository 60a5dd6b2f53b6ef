"""Searches spread over workers, and the jobs of the queue: what a script asks of it."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from threading import Event as Flag
from typing import TYPE_CHECKING, Any

from qpruner_core.domain.progress import Progress
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import BadInputError, NotReadyError, QPrunerError
from qpruner_core.store.home import database_url
from qpruner_core.store.records import RunStore

if TYPE_CHECKING:
    from qpruner_core.jobs import Job, Jobs

LOOK_EVERY_SECONDS = 0.5
"""How often a command that follows a job looks at it."""


def workers_option(parser: ArgumentParser) -> None:
    """Add what spreads a search over workers."""
    parser.add_argument(
        "--workers",
        type=int,
        help="put the search on the queue, spread over so many of the workers that run ('qpruner "
        "worker' starts one; --device and --quiet are theirs then), and follow it; by default it "
        "runs in this process",
    )


def jobs_options(parser: ArgumentParser) -> None:
    """Add what the command about jobs takes."""
    parser.add_argument("run_id", nargs="?", help="only those of this run")
    steer = parser.add_mutually_exclusive_group()
    for name, words in (
        (
            "pause",
            "stop the run's search on all its workers, each after its trial, its training before "
            "its next step, or the paper's table",
        ),
        ("resume", "go on with the run's paused or failed search, training or table"),
        (
            "stop",
            "end the run's search with what it has measured, its training with the adapter as it "
            "is, or the paper's table with its rows",
        ),
    ):
        steer.add_argument(f"--{name}", action="store_true", help=words)


def run_queued(
    store: RunStore,
    run_id: str,
    steps: tuple[str, ...],
    spec: RunSpec,
    workers: int,
    show: Callable[[Progress], None],
) -> None:
    """Put steps of a run on the queue and follow them to their end.

    Raises:
        QPrunerError: They were refused, failed, or were stopped.
    """
    from qpruner_core.jobs import Jobs  # noqa: PLC0415 - the job engine takes a second

    jobs = Jobs(store.home)
    job_id = jobs.start_line(run_id, steps, spec, workers=workers)
    if len(jobs.workers()) < workers:
        sys.stderr.write(
            f"{workers} workers were asked for and {len(jobs.workers())} run; the search takes "
            f"those that are there. 'qpruner worker' starts one more. Ctrl-C leaves the search on "
            f"the queue.\n"
        )
    job = follow(jobs, store, job_id, show)
    if job.status == "failed":
        raise QPrunerError(job.error)
    if job.status == "cancelled":
        raise QPrunerError(_paused_words(jobs, run_id))


def check_alone(store: RunStore, run_id: str) -> None:
    """Refuse to work on a run in this process while a job of it waits or runs: both would write
    the same slots, by settings of their own.

    Raises:
        NotReadyError: Such a job is there.
    """
    url = database_url(store.home)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return  # nobody has ever put a job on the queue
    from qpruner_core.jobs import Jobs, is_under_way  # noqa: PLC0415 - as above

    jobs = Jobs(store.home)
    job = next(filter(is_under_way, jobs.list(run_id)), None)
    jobs.close()
    if job is not None:
        state = "waits" if job.status == "queued" else "runs"
        doing = f" ({', '.join(job.steps)})" if job.steps else ""
        raise NotReadyError(
            f"The job {job.job_id}{doing} of run {run_id} {state}, and a run is worked on by one "
            f"at a time. Wait until it is done, or stop it on the Jobs page or, a search or "
            f"training, with 'qpruner jobs {run_id} --pause'; then give this command again."
        )


def _paused_words(jobs: Jobs, run_id: str) -> str:
    if jobs.training_job(run_id) is not None:
        return (
            f"The training of run {run_id} was stopped; the adapter as it was then is kept. Go on "
            f"with 'qpruner jobs {run_id} --resume'."
        )
    return (
        f"The search of run {run_id} was paused; what was measured is kept. Go on with "
        f"'qpruner jobs {run_id} --resume', or end it with --stop."
    )


def follow(jobs: Jobs, store: RunStore, job_id: str, show: Callable[[Progress], None]) -> Job:
    """Show what a job reports from now on until it neither waits nor runs; return it."""
    from qpruner_core.jobs import is_under_way  # noqa: PLC0415 - as above

    run_id = jobs.get(job_id).run_id
    n_shown = len(store.events(run_id))
    while True:
        job = jobs.get(job_id)  # before its reports, so that the last ones are shown too
        events = store.events(run_id)
        for event in events[n_shown:]:
            show(event.progress)
        n_shown = len(events)
        if not is_under_way(job):
            return job
        Flag().wait(LOOK_EVERY_SECONDS)


def steer_jobs(arguments: Namespace, store: RunStore) -> tuple[list[dict[str, Any]], list[str]]:
    """Pause, resume or stop what a run is at if asked; return the jobs as document and as lines.

    Raises:
        BadInputError: A run was to be steered and none was named, or nothing of it is under way.
    """
    from qpruner_core.jobs import Jobs, steering  # noqa: PLC0415 - as above

    jobs, run_id = Jobs(store.home), arguments.run_id
    asked = [name for name in ("pause", "resume", "stop") if getattr(arguments, name)]
    if asked and run_id is None:
        raise BadInputError(
            f"No run was named to {asked[0]}. Name one of 'qpruner runs' whose work that is."
        )
    for name in asked:
        sys.stderr.write(f"{getattr(steering, name)(jobs, run_id)}\n")
    found = jobs.list(run_id)
    return [_document(job) for job in found], [_line(job) for job in found] or ["No jobs."]


def _document(job: Job) -> dict[str, Any]:
    names = ("job_id", "kind", "run_id", "status", "error", "worker", "device", "created_at")
    told = job.progress
    done = {"step": told.step, "done": told.done, "total": told.total} if told else None
    return {name: getattr(job, name) for name in names} | {
        "steps": list(job.steps),
        "progress": done,
    }


def _line(job: Job) -> str:
    told = job.progress
    far = f"{told.step} {told.done}/{told.total}" if told is not None else ""
    words = (f"{job.status:<9}", job.job_id, far, f"on {job.worker}" if job.worker else "")
    return "  ".join(word for word in (*words, job.error) if word)

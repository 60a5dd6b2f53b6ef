"""A run's long work paused, resumed and ended, whichever it is: its search, its training, or the
paper's table.

A search ends with an outcome of its own. The others have one way to stop: training keeps its
checkpoint, and the adapter as it is then fills the slot of *recover*; the table keeps its rows.
Pausing and ending them differ in what the person means to do next.
"""

from __future__ import annotations

from qpruner_core.errors import BadInputError
from qpruner_core.jobs.client import Jobs
from qpruner_core.jobs.engine import REPRODUCE, Job, is_under_way


def pause(jobs: Jobs, run_id: str) -> str:
    """Stop what a run is at so that it can go on; return what happens now.

    Raises:
        BadInputError: There is no such run, or nothing of the kind waits or runs.
    """
    job = _other_than_search(jobs, run_id)
    go_on = f"Go on with 'qpruner jobs {run_id} --resume'."
    if job is None:
        _check_not_beyond(jobs, run_id)
        jobs.pause_search(run_id)
        return (
            f"The search of run {run_id} pauses: every worker ends its trial first, or leaves the "
            f"training of one, which is trained anew then. {go_on}"
        )
    _stop(jobs, job)
    if _waited(job):
        return f"{_name(job)} had not begun to run; its job is off the queue. {go_on}"
    return f"{_name(job)} pauses {_when(job)}; what it has come to is kept. {go_on}"


def resume(jobs: Jobs, run_id: str) -> str:
    """Go on with what a run was at; return what happens now.

    Raises:
        BadInputError: There is no such run, or `Jobs.why_not_resumed` says why not.
    """
    job = _other_than_search(jobs, run_id)
    trained = jobs.trained_job(run_id) if job is None else None
    if trained is not None:
        jobs.resume(trained.job_id)
        return f"The job {trained.job_id} goes on behind its training, which is complete."
    if job is None:
        jobs.resume_search(run_id)
        return f"The search of run {run_id} goes on with its next trial."
    jobs.resume(job.job_id)
    return f"{_name(job)} goes on where it stood."


def stop(jobs: Jobs, run_id: str) -> str:
    """End what a run is at with what there is; return what happens now.

    Raises:
        BadInputError: There is no such run, or it has ended already.
    """
    job = _other_than_search(jobs, run_id)
    if job is None:
        _check_not_beyond(jobs, run_id)
        jobs.stop_search(run_id)
        return f"The search of run {run_id} ends with what it has measured."
    _stop(jobs, job)
    if _waited(job):
        return (
            f"{_name(job)} had not begun to run; its job is off the queue, and what was there "
            f"before stays. 'qpruner jobs {run_id} --resume' would go on with it."
        )
    left = "the rows that are there"
    if job.kind != REPRODUCE:
        left = (
            f"the adapter as it is then. Steps that were to follow are not run: 'qpruner export "
            f"{run_id}' writes the model with it"
        )
    return (
        f"{_name(job)} ends {_when(job)}, with {left}. 'qpruner jobs {run_id} --resume' would go "
        f"on with it."
    )


def _other_than_search(jobs: Jobs, run_id: str) -> Job | None:
    """Return the job of a run's training, or of the paper's table where that is newer."""
    found = jobs.list(run_id)
    newest = next((job for job in found if job.kind in ("line", REPRODUCE)), None)
    if newest is not None and newest.kind == REPRODUCE:
        return newest
    return jobs.training_job(run_id)


def _check_not_beyond(jobs: Jobs, run_id: str) -> None:
    """Refuse to steer a job whose search and training are behind it.

    Raises:
        BadInputError: The run is at such a job.
    """
    job = jobs.trained_job(run_id)
    if job is not None and is_under_way(job):
        step = job.progress.step if job.progress is not None else "export"
        raise BadInputError(
            f"The training of run {run_id} is complete; its job {job.job_id} is at {step} now, "
            f"which is not paused or ended half-way. Wait until it is done, or cancel the job on "
            f"the Jobs page."
        )


def _waited(job: Job) -> bool:
    """Whether a training's job was on the queue still; the table's words fit that too."""
    return job.kind != REPRODUCE and job.status == "queued"


def _name(job: Job) -> str:
    what = "paper's table" if job.kind == REPRODUCE else "training"
    return f"The {what} of run {job.run_id}"


def _when(job: Job) -> str:
    if job.kind == REPRODUCE:
        return "after the plan that it measures, or before the next step of a training"
    return "before its next step"


def _stop(jobs: Jobs, job: Job) -> None:
    """Stop a job.

    Raises:
        BadInputError: It has ended already.
    """
    if not is_under_way(job):
        again = "reproduce MODEL" if job.kind == REPRODUCE else f"recover {job.run_id}"
        raise BadInputError(
            f"{_name(job)} is not under way: its job is {job.status}. Go on with it by 'qpruner "
            f"jobs {job.run_id} --resume' if it was stopped, or start it with 'qpruner {again}'."
        )
    jobs.cancel(job.job_id)

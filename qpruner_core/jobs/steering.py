"""A run's long work paused, resumed and ended, whichever it is: its search, or its training.

Training has one way to stop: it keeps its checkpoint, and the adapter as it is then fills the slot
of *recover*. Pausing and ending it differ in what the person means to do next.
"""

from __future__ import annotations

from qpruner_core.errors import BadInputError
from qpruner_core.jobs.client import Jobs
from qpruner_core.jobs.engine import is_under_way


def pause(jobs: Jobs, run_id: str) -> str:
    """Stop the training or the search of a run so that it can go on; return what happens now.

    Raises:
        BadInputError: There is no such run, or neither waits or runs.
    """
    if not _stop_training(jobs, run_id):
        jobs.pause_search(run_id)
        return (
            f"The search of run {run_id} pauses: every worker ends its trial first. Go on with "
            f"'qpruner jobs {run_id} --resume'."
        )
    return (
        f"The training of run {run_id} pauses before its next step; its checkpoint is kept. Go on "
        f"with 'qpruner jobs {run_id} --resume'."
    )


def resume(jobs: Jobs, run_id: str) -> str:
    """Go on with the training or the search of a run; return what happens now.

    Raises:
        BadInputError: There is no such run, or `Jobs.why_not_resumed` says why not.
    """
    training = jobs.training_job(run_id)
    if training is None:
        jobs.resume_search(run_id)
        return f"The search of run {run_id} goes on with its next trial."
    jobs.resume(training.job_id)
    return f"The training of run {run_id} goes on at the step where it stood."


def stop(jobs: Jobs, run_id: str) -> str:
    """End the training or the search of a run with what there is; return what happens now.

    Raises:
        BadInputError: There is no such run, or its search or training has ended already.
    """
    if not _stop_training(jobs, run_id):
        jobs.stop_search(run_id)
        return f"The search of run {run_id} ends with what it has measured."
    return (
        f"The training of run {run_id} ends before its next step, with the adapter as it is then. "
        f"Steps that were to follow are not run: 'qpruner export {run_id}' writes the model with "
        f"it, and 'qpruner jobs {run_id} --resume' would train on."
    )


def _stop_training(jobs: Jobs, run_id: str) -> bool:
    """Stop the training of a run; whether that is what it was at.

    Raises:
        BadInputError: It has stopped already.
    """
    training = jobs.training_job(run_id)
    if training is None:
        return False
    if not is_under_way(training):
        raise BadInputError(
            f"The training of run {run_id} is not under way: its job is {training.status}. Go on "
            f"with it by 'qpruner jobs {run_id} --resume' if it was stopped, or train anew with "
            f"'qpruner recover {run_id}'."
        )
    jobs.cancel(training.job_id)
    return True

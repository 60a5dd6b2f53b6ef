"""The search as steps of a job, alone or spread over several workers.

Every trial is one step, which claims the plan to measure next. The line's job measures the
baselines, puts a job of kind *trials* on the queue for every further worker, and claims as they
do. Trials only share the run; where the job is alone with it, at the end, every other worker is
done, and a trial that still counts as running was left by one that died or failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dbos import DBOS, SetEnqueueOptions, SetWorkflowID

from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import RunRecord
from qpruner_core.jobs import QUEUE, TRIALS, beside
from qpruner_core.worker.bench import Bench, RunsTheLine

TrialsJob = Callable[[dict[str, Any]], None]
MAX_KILLS = 20
"""How often the worker may die under one job before the job is given up."""


def unless_filled(line: RunsTheLine, name: str, work: Callable[[], None]) -> bool:
    """Run a verb unless its slot was filled by an attempt that died before it was recorded.

    Returns:
        Whether the verb is done with: training that was stopped fills its slot with what was
        learned, and goes on from there when the verb is run again.
    """
    if not _is_done(line.record(), name):
        work()
    return _is_done(line.record(), name)


def _is_done(record: RunRecord, name: str) -> bool:
    if name == "recover":
        return record.recover is not None and record.recover.is_complete
    return getattr(record, name) is not None


def register_search(bench: Bench) -> Callable[[str, int], None]:
    """Tell the engine of trials, and return what runs a search inside a job."""
    search_trial, trials_job = _register_trials(bench)

    @DBOS.step(name="search_begin")
    def search_begin(run_id: str) -> dict[str, Any]:
        bench.tell(run_id, Progress(step="search", done=0, total=1))
        n_baselines = bench.do(
            run_id,
            "search",
            lambda line: 0 if line.record().search is not None else line.search_begin(),
        )
        return {"n_baselines": n_baselines, "study": bench.record(run_id).study_name}

    @DBOS.step(name="search_baseline")
    def search_baseline(run_id: str, index: int) -> None:
        bench.do(run_id, f"baseline {index}", lambda line: line.search_baseline(index))

    @DBOS.step(name="search_finish")
    def search_finish(run_id: str) -> None:
        bench.do(
            run_id, "search, last", lambda line: unless_filled(line, "search", line.search_finish)
        )

    def run_search(run_id: str, n_workers: int) -> None:
        begun = search_begin(run_id)
        for index in range(begun["n_baselines"]):
            search_baseline(run_id, index)
        for number in range(1, n_workers):
            _enqueue(trials_job, beside(str(DBOS.workflow_id), number), run_id, begun["study"])
        for alone in (False, True):
            while search_trial(run_id, begun["study"], alone):
                pass
        search_finish(run_id)

    return run_search


def _register_trials(bench: Bench) -> tuple[Callable[[str, str, bool], bool], TrialsJob]:
    """Return the step that measures a trial, and the job that is nothing but such steps."""

    @DBOS.step(name="search_trial")
    def search_trial(run_id: str, study: str, alone: bool) -> bool:
        return _measure_next(bench, run_id, study, alone=alone)

    @DBOS.workflow(name=TRIALS, max_recovery_attempts=MAX_KILLS)
    def trials_job(payload: dict[str, Any]) -> None:
        while search_trial(payload["run_id"], payload["study"], False):
            pass

    return search_trial, trials_job


def _enqueue(trials_job: TrialsJob, job_id: str, run_id: str, study: str) -> None:
    """Put a job that measures trials on the queue; one that has been put there stays as it is."""
    # A partition of its own: jobs of one partition never run beside each other.
    with SetWorkflowID(job_id), SetEnqueueOptions(queue_partition_key=job_id):
        DBOS.enqueue_workflow(QUEUE, trials_job, {"run_id": run_id, "study": study})


def _measure_next(bench: Bench, run_id: str, study: str, *, alone: bool) -> bool:
    """Measure what the study gives us next; whether there was anything."""
    bench.tell_newest(run_id)

    def is_over() -> bool:
        # Before anything is loaded: a job may have waited until its search had ended, or until
        # the run was given another one.
        record = bench.record(run_id)
        return record.search is not None or record.study_name != study

    def measure(line: RunsTheLine) -> bool:
        return not is_over() and line.search_next(bench.owner, alone=alone) is not None

    if is_over():
        return False
    words = "the next trial (with no other worker)" if alone else "the next trial"
    return bench.do(run_id, words, measure, shared=not alone)

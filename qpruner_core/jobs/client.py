"""What a page or a script asks of the job engine."""

from __future__ import annotations

import secrets
from typing import Any

from dbos import EnqueueOptions

from qpruner_core.catalog import check_recovery, check_spec
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import STEPS
from qpruner_core.domain.reproduction import ReproductionSpec
from qpruner_core.domain.spec import PruningSpec, RunSpec
from qpruner_core.errors import BadInputError, NotReadyError
from qpruner_core.jobs.engine import (
    BEGIN,
    COMPARE_BEGIN,
    KILLED_TOO_OFTEN,
    QUEUE,
    REPRODUCE,
    REPRODUCE_BEGIN,
    TRIALS,
    WORKFLOWS_VERSION,
    Job,
    is_under_way,
)
from qpruner_core.jobs.reading import Found, JobReader, payload_of
from qpruner_core.store.codec import from_plain, to_plain

_SEARCH, _RECOVER = STEPS.index("search"), STEPS.index("recover")


def _at(job: Job) -> int | None:
    """Return the index of the step that a running line job is at; None where it has not said."""
    told = job.progress if job.status == "running" else None
    return STEPS.index(told.step) if told is not None and told.step in STEPS else None


class Jobs(JobReader):
    """The jobs of one home folder; safe to use from several threads.

    The engine's tables are made if they are missing, so that the app can start before any worker.
    """

    # starting ------------------------------------------------------------------------------------

    def start_line(
        self, run_id: str, steps: tuple[str, ...], spec: RunSpec, workers: int = 1
    ) -> str:
        """Put steps of a run on the queue, to fill their slots anew; return the job's id.

        Args:
            run_id: The run.
            steps: Which, in the order of the line.
            spec: What the run is asked to do from now on.
            workers: Over how many workers a search is spread; >= 1. With fewer workers at hand
                the search goes on with those.

        Raises:
            BadInputError: There is no such run, no worker was asked for, or the steps are none,
                unknown or out of order.
            UnknownNameError: The spec names something that no catalogue entry carries.
        """
        if not steps or list(steps) != [step for step in STEPS if step in steps]:
            raise BadInputError(
                f"The steps {', '.join(steps) or '(none)'} are no part of the line. Name one or "
                f"more of {', '.join(STEPS)}, in this order, each once."
            )
        if workers < 1:
            raise BadInputError(
                f"The search was asked to be spread over {workers} workers. Give 1 or more."
            )
        check_spec(spec)
        return self._start("line", run_id, steps=list(steps), spec=to_plain(spec), workers=workers)

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

    def start_reproduce(self, run_id: str, spec: ReproductionSpec) -> str:
        """Ask for the paper's table on the run's model; return the job's id.

        Its rows come into the run's record one by one, and every ratio gets a run of its own. A
        table that asks for the same goes on with what it has; another one replaces it.

        Raises:
            BadInputError: There is no such run.
            UnknownNameError: The recovery names something that no catalogue entry carries.
        """
        check_recovery(spec.recovery)
        return self._start(REPRODUCE, run_id, spec=to_plain(spec))

    def start_generate(self, run_id: str, prompt: str, trial: int | None = None) -> str:
        """Ask the original and the compressed model to go on from a prompt; return the job's id.

        Raises:
            BadInputError: There is no such run.
        """
        return self._start("generate", run_id, prompt=prompt, trial=trial)

    # steering ------------------------------------------------------------------------------------

    def cancel(self, job_id: str) -> None:
        """Stop a job at its next step boundary (of a search: after the trial).

        With a line job those that measure trials of its search stop too. Training stops within
        seconds and keeps what was learned. An ended job stays as it is.

        Raises:
            BadInputError: There is no such job.
        """
        job = self.get(job_id)
        with self._asking():
            self._client.cancel_workflow(job_id)
        # Looked up afterwards: a cancelled job puts no more of them on the queue.
        under_way = [other.job_id for other in self._beside(job) if is_under_way(other)]
        if under_way:
            with self._asking():
                self._client.cancel_workflows(under_way)

    def resume(self, job_id: str) -> None:
        """Go on with a cancelled or failed job at its first unfinished step.

        With a line job those that measured trials of its search go on too.

        Raises:
            BadInputError: There is no such job, or `why_not_resumed` says why not.
        """
        job = self.get(job_id)
        why_not = self.why_not_resumed(job)
        if why_not:
            raise BadInputError(why_not)
        for each in (job, *self._beside(job)):
            if each is job or not self.why_not_resumed(each):
                self._go_on(each)

    def pause_search(self, run_id: str) -> None:
        """Stop the search of a run on all its workers, each after its trial; nothing is lost.

        Raises:
            BadInputError: There is no such run, or no search of it waits or runs.
        """
        job = self._search_job(run_id)
        if job is None or not any(map(is_under_way, (job, *self._beside(job)))):
            raise BadInputError(
                f"No search of run {run_id} waits or runs. Start one on the Search page, or "
                f"resume the one that was paused."
            )
        self.cancel(job.job_id)

    def resume_search(self, run_id: str) -> None:
        """Go on with a paused or failed search of a run, on as many workers as before.

        Raises:
            BadInputError: There is no such run, or `why_not_resumed` says why not.
        """
        job = self._search_job(run_id)
        if job is None:
            raise BadInputError(
                f"The run {run_id} has no search that could be resumed. Start one on the Search "
                f"page."
            )
        others = [other for other in self._beside(job) if not self.why_not_resumed(other)]
        if not is_under_way(job) or not others:
            self.resume(job.job_id)
            return
        for other in others:
            self._go_on(other)

    def stop_search(self, run_id: str) -> str:
        """End the search of a run with what it has measured; return the id of the job that does.

        Trials under way are finished first. Steps that were to follow the search are not run.

        Raises:
            BadInputError: There is no such run, or its search has ended already.
        """
        job = self._search_job(run_id)
        if job is not None:
            self.cancel(job.job_id)
        return self.start_finish(run_id)

    def training_job(self, run_id: str) -> Job | None:
        """Return the newest line job of a run where it has come to training and is not done with
        it; else None.

        Raises:
            BadInputError: There is no such run.
        """
        job = self._line_that_trains(run_id)
        return None if job is None or self._has_trained(job) else job

    def trained_job(self, run_id: str) -> Job | None:
        """Return the newest line job of a run where training is behind it, as while it exports;
        else None.

        Raises:
            BadInputError: There is no such run.
        """
        job = self._line_that_trains(run_id)
        return job if job is not None and self._has_trained(job) else None

    def _line_that_trains(self, run_id: str) -> Job | None:
        """Return the newest line job of a run where it trains and does not search now."""
        job = next((job for job in self.list(run_id) if job.kind == "line"), None)
        if job is None or "recover" not in job.steps:
            return None
        at = _at(job)
        has_searched = self._store.read(run_id).search is not None if at is None else at > _SEARCH
        return job if has_searched or "search" not in job.steps else None

    def _has_trained(self, job: Job) -> bool:
        """Whether a line job is at a step after its training, or stopped there."""
        if job.status == "queued":
            return False  # what the record holds is of the job before, as far as we know
        at, found = _at(job), self._store.read(job.run_id).recover
        if at is not None:
            return at > _RECOVER
        return found is not None and found.is_complete

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
        if job.version != WORKFLOWS_VERSION:
            return (
                f"The job {job.job_id} was begun by another version of QPruner Studio, whose jobs "
                f"have other steps. Start the step again: what was measured with equal settings "
                f"is kept."
            )
        if job.is_refused:
            return (
                f"The job {job.job_id} was refused and would be again: {job.error} Start the "
                f"step again with other settings."
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

    def _go_on(self, job: Job) -> None:
        with self._asking():
            if job.status == "cancelled" or job.error == KILLED_TOO_OFTEN:
                self._client.resume_workflow(job.job_id, queue_name=QUEUE)
                return
            recorded = self._client.list_workflow_steps(job.job_id)
            failed = (step["function_id"] for step in recorded if step["error"] is not None)
            self._client.rewind_workflow(
                job.job_id,
                start_step=min(failed, default=1),
                queue_name=QUEUE,
                queue_partition_key=job.job_id if job.kind == TRIALS else job.run_id,
            )

    def _search_job(self, run_id: str) -> Job | None:
        """Return the newest line job of a run that searches."""
        lines = (job for job in self.list(run_id) if job.kind == "line" and "search" in job.steps)
        return next(lines, None)

    def _beside(self, job: Job) -> Found:
        """Return the jobs that measure trials of a line job's search."""
        if job.kind != "line":
            return []
        found = self.list(job.run_id)
        return [other for other in found if other.kind == TRIALS and other.group == job.group]

    def _replaced_by(self, job: Job) -> Job | None:
        """Return the newest later job that took the place of a job."""
        for other in self.list(job.run_id):
            if other.job_id == job.job_id:
                return None
            if other.replaces(job):
                return other
        return None

    def _asks_for_something_else(self, job: Job) -> bool:
        """Whether the record has another spec, comparison or table than the job's first step left,
        or another study than its trials were for.
        """
        begins = {"line": BEGIN, "compare": COMPARE_BEGIN, REPRODUCE: REPRODUCE_BEGIN}
        first = begins.get(job.kind)
        with self._asking():
            recorded = self._client.list_workflow_steps(job.job_id)
            rows = self._client.list_workflows(workflow_ids=[job.job_id])
        record, payload = self._store.read(job.run_id), payload_of(rows[0])
        if job.kind == TRIALS:
            return bool(payload["study"] != record.study_name)
        left = next((step["output"] for step in recorded if step["function_name"] == first), None)
        if left is None:
            return False
        if job.kind == "line":
            return bool(left != to_plain(record.spec))
        if job.kind == REPRODUCE:
            return record.reproduction is None or left != to_plain(record.reproduction.spec)
        wanted = from_plain(PruningSpec, payload["pruning"])
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

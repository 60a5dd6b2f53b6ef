"""A queue that remembers what it was asked and starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import Trial
from qpruner_core.domain.reproduction import ReproductionSpec
from qpruner_core.domain.spec import PruningSpec, RunSpec
from qpruner_core.jobs import Job, SearchWorker, WorkerInfo


class FakeJobs:
    def __init__(self) -> None:
        self.known: dict[str, Job] = {}
        self.asked: list[tuple[str, object]] = []
        self.answers: dict[str, dict[str, object]] = {}
        self.crew: list[WorkerInfo] = []
        self.searching: tuple[SearchWorker, ...] = ()
        self.workers_asked = 0

    def add(self, run_id: str, status: str, steps: tuple[str, ...], **facts: object) -> Job:
        job = Job(
            **{
                "job_id": f"job-{len(self.known):08d}",
                "kind": "line",
                "run_id": run_id,
                "steps": steps,
                "status": status,
                "progress": None,
                "error": "",
                "created_at": f"2026-01-01T00:00:{len(self.known):02d}+00:00",
                "updated_at": "2026-01-01T00:01:00+00:00",
                "worker": "",
                "device": "",
                **facts,
            }
        )
        self.known[job.job_id] = job
        return job

    def running(self, run_id: str, step: str, done: int, total: int) -> Job:
        told = Progress(step=step, done=done, total=total, message="at work")
        return self.add(run_id, "running", (step,), progress=told, worker="worker-1", device="cpu")

    def start_line(
        self, run_id: str, steps: tuple[str, ...], spec: RunSpec, workers: int = 1
    ) -> str:
        self.asked.append(("line", (run_id, steps, spec)))
        self.workers_asked = workers
        return self.add(run_id, "queued", steps).job_id

    def start_finish(self, run_id: str) -> str:
        self.asked.append(("finish", run_id))
        return self.add(run_id, "queued", ("search",), kind="finish").job_id

    def start_measure(self, run_id: str, plan: PrecisionPlan) -> str:
        self.asked.append(("measure", (run_id, plan)))
        return self.add(run_id, "queued", (), kind="measure").job_id

    def start_reproduce(self, run_id: str, spec: ReproductionSpec) -> str:
        self.asked.append(("reproduce", (run_id, spec)))
        return self.add(run_id, "queued", (), kind="reproduce").job_id

    def start_generate(self, run_id: str, prompt: str, trial: int) -> str:
        self.asked.append(("generate", (run_id, prompt, trial)))
        job = self.add(run_id, "done", (), kind="generate")
        self.answers[job.job_id] = {"original": "one word", "compressed": "another word"}
        return job.job_id

    def start_compare(self, run_id: str, spec: PruningSpec) -> str:
        self.asked.append(("compare", (run_id, spec)))
        return self.add(run_id, "queued", (), kind="compare").job_id

    def start_compress(self, run_id: str, spec: RunSpec) -> str:
        self.asked.append(("compress", (run_id, spec)))
        return self.add(run_id, "queued", (), kind="compress").job_id

    def list(self, run_id: str | None = None) -> list[Job]:
        found = [job for job in self.known.values() if run_id in (None, job.run_id)]
        return sorted(found, key=lambda job: job.created_at, reverse=True)

    def get(self, job_id: str) -> Job:
        return self.known[job_id]

    def result(self, job_id: str) -> dict[str, object]:
        return self.answers[job_id]

    def cancel(self, job_id: str) -> None:
        self.asked.append(("cancel", job_id))
        self.known[job_id] = replace(self.known[job_id], status="cancelled")

    def resume(self, job_id: str) -> None:
        self.asked.append(("resume", job_id))
        self.known[job_id] = replace(self.known[job_id], status="queued")

    def search_workers(self, run_id: str, trials: Sequence[Trial]) -> tuple[SearchWorker, ...]:
        return self.searching

    def pause_search(self, run_id: str) -> None:
        self.cancel(self._search_of(run_id).job_id)

    def resume_search(self, run_id: str) -> None:
        self.resume(self._search_of(run_id).job_id)

    def stop_search(self, run_id: str) -> str:
        self.pause_search(run_id)
        return self.start_finish(run_id)

    def _search_of(self, run_id: str) -> Job:
        found = (job for job in self.list(run_id) if job.kind == "line" and "search" in job.steps)
        return next(found)

    def forget(self, run_id: str) -> None:
        self.asked.append(("forget", run_id))
        self.known = {key: job for key, job in self.known.items() if job.run_id != run_id}

    def workers(self) -> list[WorkerInfo]:
        return self.crew

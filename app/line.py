"""Where a run stands on the line and which steps a button has to ask for."""

from __future__ import annotations

from dataclasses import replace

from qpruner_core.domain.record import STEPS, RunRecord
from qpruner_core.domain.spec import SearchSpec
from qpruner_core.jobs import Job

UNDER_WAY = ("queued", "running")


def is_under_way(job: Job) -> bool:
    """Whether the job still waits or runs."""
    return job.status in UNDER_WAY


def filled(record: RunRecord) -> frozenset[str]:
    """Return the steps that have filled their slots."""
    return frozenset(step for step in STEPS if getattr(record, step) is not None)


def is_table(record: RunRecord) -> bool:
    """Whether a run is there for the paper's table alone; of the line it has at most been
    loaded.
    """
    return record.reproduction is not None and len(filled(record)) < 2


def asks_more_trials(record: RunRecord, spec: SearchSpec) -> bool:
    """Whether a finished search is asked for again, unchanged but with more trials than it
    measured.
    """
    if record.search is None:
        return False
    known = record.search.spec
    measured = sum(not trial.name for trial in record.search.trials)
    return spec.n_trials > measured and replace(spec, n_trials=known.n_trials) == known


def emptied_by(record: RunRecord, steps: tuple[str, ...]) -> tuple[str, ...]:
    """Return the finished steps whose results are lost when these steps run in this run."""
    first = STEPS.index(steps[0])
    return tuple(step for step in STEPS[first:] if getattr(record, step) is not None)


def standing(record: RunRecord, job: Job | None) -> dict[str, str]:
    """Return step -> ``done``, ``running``, ``waiting``, ``failed`` or ``open``."""
    states = {step: "done" if getattr(record, step) is not None else "open" for step in STEPS}
    if job is None or job.status in ("done", "cancelled"):
        return states
    if job.status == "failed":
        broken = next((step for step in job.steps if states.get(step) == "open"), None)
        return states | ({broken: "failed"} if broken else {})
    now = job.progress.step if job.progress is not None and job.status == "running" else ""
    for step in job.steps:
        if step == now:
            states[step] = "running"
        elif states.get(step) == "open":
            states[step] = "waiting"
    return states

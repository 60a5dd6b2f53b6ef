"""What the pages read and whom they ask: one store and one job client per server, answers kept
while they hold.

Nothing here imports torch; computing belongs to the worker, the exceptions are estimates from a
layout.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import streamlit as st

from app import foresight, line, points, wording
from app.clouds import Cloud
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import ModelCard, RunRecord, Trial
from qpruner_core.domain.spec import ModelSpec, PruningSpec
from qpruner_core.inspection import inspect_model
from qpruner_core.jobs import TRIALS, Job, Jobs
from qpruner_core.pruning.selection import Selection, select
from qpruner_core.search.reading import TrialReader
from qpruner_core.store.events import Event
from qpruner_core.store.home import check_allowed, home
from qpruner_core.store.records import RunStore

T = TypeVar("T")

LAYER_CRITERION = "block_influence"
"""The signal by which whole layers leave."""
N_KEPT = 48
"""Pictures that are kept, the newest ones."""
N_EVENTS = 5_000
"""Reports looked back on; a step reports once per piece."""

fits = foresight.fits
predicted = foresight.predicted
predicted_by_cost = foresight.predicted_by_cost


@st.cache_resource(show_spinner=False)
def _store(folder: str) -> RunStore:
    return RunStore(Path(folder))


@st.cache_resource(show_spinner=False)
def _jobs(folder: str) -> Jobs:
    return Jobs(Path(folder))


def store() -> RunStore:
    """Return the store of the home folder."""
    return _store(str(home()))


def jobs() -> Jobs:
    """Return the client of the job engine."""
    return _jobs(str(home()))


def job_under_way(run_id: str) -> Job | None:
    """Return the job of a run that waits or runs, the newest first and those that measure trials
    beside another last; None when nothing is under way.
    """
    under_way = [job for job in jobs().list(run_id) if line.is_under_way(job)]
    return min(under_way, key=lambda job: job.kind == TRIALS, default=None)


def newest_job(run_id: str) -> Job | None:
    """Return the newest job of a run."""
    return max(jobs().list(run_id), key=lambda job: job.created_at, default=None)


def last_job(run_id: str, step: str) -> Job | None:
    """Return the newest job of a run that runs that step from its start."""
    asked = [job for job in jobs().list(run_id) if step in job.steps and job.kind == "line"]
    return max(asked, key=lambda job: job.created_at, default=None)


def delete_run(run_id: str) -> None:
    """Stop and forget a run's jobs, then delete the run with all its files."""
    jobs().forget(run_id)
    store().delete(run_id)


@st.cache_resource(show_spinner="Reading the model's headers", max_entries=32, ttl=600)
def _card(spec: ModelSpec) -> ModelCard:
    return inspect_model(spec)


def model_card(spec: ModelSpec) -> ModelCard:
    """Return what config and headers say about a model; a local folder must be one the server
    allows.
    """
    if spec.source != "demo" and Path(spec.source).expanduser().exists():
        check_allowed(Path(spec.source).expanduser())
    return _card(spec)


def folder_exists(path: str) -> bool:
    """Whether there is something at a path on the server."""
    return Path(path).expanduser().exists()


def trials(record: RunRecord) -> tuple[Trial, ...]:
    """Return what the finished search holds, else what an unfinished one has come to; the same
    tuple while nothing has changed.
    """
    if record.search is None:
        return live_trials(record)
    return once(f"trials/{record.run_id}", record.search, lambda: points.trials_of(record))


def measured(record: RunRecord) -> Cloud:
    """Return all measured plans of a run; the same value while no more are measured."""
    told = trials(record)
    return once(f"measured/{record.run_id}", told, lambda: Cloud(points.of_trials(record, told)))


def live_trials(record: RunRecord) -> tuple[Trial, ...]:
    """Return baselines and trials of a run's study as they stand now, while the search still runs
    too; the same tuple while nothing has changed.
    """
    known = store().read_value(record.run_id, record.baselines_name, tuple[Trial, ...]) or ()
    told = _reader(store().study_url(), record.study_name).read()
    key = f"live/{record.study_name}"
    before, joined = once(key, told, lambda: (known, (*known, *told)))
    if before != known:  # baselines are few, and come before most trials
        _kept(str(home())).pop(key, None)
        _, joined = once(key, told, lambda: (known, (*known, *told)))
    return joined


@st.cache_resource(show_spinner=False, max_entries=64)
def _reader(url: str, name: str) -> TrialReader:
    return TrialReader(url, name)


def seconds_each(job: Job) -> float:
    """Return how long a piece of a job's present step takes, by the worker's own reports."""
    if job.progress is None:
        return 0.0
    told = _newest_attempt(job.run_id, job.progress.step)
    return wording.seconds_each([(event.at, event.progress.done) for event in told])


def reports(run_id: str, step: str) -> list[Progress]:
    """Return what the newest attempt at a step reported, oldest first."""
    return [event.progress for event in _newest_attempt(run_id, step)]


def _newest_attempt(run_id: str, step: str) -> list[Event]:
    told = [e for e in store().events(run_id, N_EVENTS) if e.progress.step == step]
    starts = [index for index, event in enumerate(told) if event.progress.done == 0]
    return told[starts[-1] :] if starts else told


def unit_scores(record: RunRecord, criterion: str) -> dict[str, np.ndarray] | None:
    """Return group name -> scores (n_units,) of one criterion; None when it has not been
    scored.
    """
    if record.score is None:
        return None
    arrays = _arrays(str(home()), record.run_id, record.score.unit_scores)
    start = f"{criterion}/"
    found = {
        name[len(start) :]: values for name, values in arrays.items() if name.startswith(start)
    }
    return found or None


@st.cache_resource(show_spinner=False, max_entries=8)
def _arrays(folder: str, run_id: str, artifact: str) -> dict[str, np.ndarray]:
    return dict(_store(folder).read_arrays(run_id, artifact))


def once(key: str, source: object, make: Callable[[], T]) -> T:
    """Return what was made of a slot of a record, made anew when the slot is another one.

    For pictures of what was measured, which a page draws again at every move of a slider. The
    store hands out the same record until its file changes, so that the slot itself tells.

    Args:
        key: What is made, and of which run.
        source: The slot that it is made of.
        make: Makes it.
    """
    kept = _kept(str(home()))
    found = kept.get(key)
    if found is None or found[0] is not source:
        found = (source, make())
        kept.pop(key, None)
        kept[key] = found
        for oldest in list(kept)[:-N_KEPT]:
            kept.pop(oldest, None)
    return cast("T", found[1])


@st.cache_resource(show_spinner=False)
def _kept(folder: str) -> dict[str, tuple[object, object]]:
    return {}


def layer_influence(record: RunRecord, n_layers: int) -> tuple[float, ...] | None:
    """Return the Block Influence of every layer; None when it has not been scored."""
    if record.score is None:
        return None
    values = record.score.layer_values(LAYER_CRITERION)
    return tuple(values[i] for i in range(n_layers)) if len(values) == n_layers else None


def preview(
    record: RunRecord, dense: ModelLayout, spec: PruningSpec, *, scored: bool = True
) -> Selection:
    """Return which units would leave: from the scores when there are some, else sizes alone.

    Args:
        record: The run.
        dense: Its model before pruning.
        spec: What is asked for.
        scored: Whether the run's scores are those of the criterion as it is asked for.

    Raises:
        QPrunerError: No selection does what is asked; the sentence says what would.
    """
    scores = unit_scores(record, spec.criterion) if scored else None
    if not spec.drop_layers:
        return select(dense, scores, spec)
    return select(dense, scores, spec, layer_scores=layer_influence(record, dense.n_layers))

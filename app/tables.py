"""Records in, tables out: what a run, a model, a trial or a job looks like in one row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import nan

import pandas as pd

from app import line, pairs, points, wording, wording_paired
from app.clouds import Cloud
from app.points import Point
from qpruner_core.catalog import PRECISIONS, precision_formats
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.paired import paired
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import STEPS, ModelCard, RunRecord, Trial
from qpruner_core.inspection import Fit, gpu_fits
from qpruner_core.jobs import Job, WorkerInfo
from qpruner_core.search.noise import PairedDifference

NOTHING = "-"
RUN_WIDTHS = {
    "Run": 120,
    "Stands at": 140,
    "Pruned": 70,
    "Best plan, measured": 150,
    "Weights": 85,
    "Loss per token": 115,
    "Accuracy": 115,
}
JOB_WIDTHS = {"Run": 130, "Status": 80, "Does": 250, "Progress": 150, "Device": 80}
"""Pixels of columns that would be clipped; the others share what is left."""
ENDED_WORDS = {"failed": "failed", "stopped": "stopped early, dominated"}
"""States of trials that gave no point of the front."""


def runs(records: Sequence[RunRecord], jobs: Sequence[Job]) -> pd.DataFrame:
    """Return one row per run with where it stands and its best point under the budget."""
    busy = {job.run_id: job for job in jobs if line.is_under_way(job)}
    rows = []
    for record in records:
        best = best_point(record)
        rows.append(
            {
                "Run": record.spec.name or record.spec.model.source,
                "Stands at": stands_at(record, busy.get(record.run_id)),
                "Pruned": wording.percent(record.prune.spec.ratio, 0) if record.prune else NOTHING,
                "Best plan, measured": best.name if best else NOTHING,
                "Weights": wording.size(best.metrics.weight_bytes) if best else NOTHING,
                "Loss per token": wording.nats(best.metrics.loss) if best else NOTHING,
                "Accuracy": mean_accuracy(best.metrics) if best else NOTHING,
                "Id": record.run_id,
                "Started": wording.day(record.created_at),
            }
        )
    return pd.DataFrame(rows)


def best_point(record: RunRecord) -> Point | None:
    """Return the best measured plan of a run under its own budget."""
    if record.search is None:
        return None
    found = points.of_trials(record, points.trials_of(record))
    return points.best_under(found, record.search.budget_bytes, record.search.spec.objective)


def stands_at(record: RunRecord, job: Job | None) -> str:
    """Return in words how far a run has come."""
    if job is not None:
        return f"{wording.job_status(job.status)}: {_at(job)}"
    done = [step for step in STEPS if getattr(record, step) is not None]
    made = record.reproduction
    if made is not None and line.is_table(record):
        return f"table: {len(made.rows)} of {made.n_rows} rows"
    if not done:
        return "not started"
    if record.next_step is None:
        return "exported"
    return f"{wording.STEP_TITLES[done[-1]]} done"


def _at(job: Job) -> str:
    if job.status == "queued" or job.kind in wording.JOB_TITLES:
        return wording.JOB_TITLES.get(job.kind, "waits for a worker")
    step = job.progress.step if job.progress is not None else ""
    return wording.STEP_TITLES.get(step, "starts")


def precisions(card: ModelCard) -> pd.DataFrame:
    """Return what a model takes at each precision, largest first; all estimated from its
    layout.
    """
    formats = precision_formats()
    needed = {fit.precision: fit for fit in gpu_fits(card.layout, formats)}
    return pd.DataFrame(
        [
            {
                "Precision": PRECISIONS.entry(name).title,
                "Weights": wording.size(
                    plan_bytes(card.layout, PrecisionPlan.uniform(card.layout, name), formats)
                ),
                "To run": wording.size(needed[name].inference_bytes),
                "To fine-tune": wording.size(needed[name].training_bytes),
            }
            for name in reversed(PRECISIONS.names())
        ]
    )


def cards(card: ModelCard) -> pd.DataFrame:
    """Return card x precision: whether the model runs there and whether LoRA fine-tuning fits
    too.
    """
    rows: dict[str, dict[str, str]] = {}
    for fit in gpu_fits(card.layout, precision_formats()):
        name = f"{fit.gpu.name} ({wording.size(fit.gpu.memory_bytes)})"
        rows.setdefault(name, {"GPU": name})[PRECISIONS.entry(fit.precision).title] = _fit_words(
            fit
        )
    return pd.DataFrame(list(rows.values()))


def _fit_words(fit: Fit) -> str:
    if fit.trains:
        return "runs, fine-tunes"
    return "runs" if fit.runs else "too small"


def measured(found: Sequence[Point]) -> pd.DataFrame:
    """Return one row per measured candidate."""
    cloud = Cloud.of(found)
    rows = {
        "Run": [point.run_name for point in cloud],
        "Plan": [point.name for point in cloud],
        "Pruned": [
            wording.percent(p.pruned, 0) if p.pruned is not None else NOTHING for p in cloud
        ],
        "Weights": [wording.size(size) for size in cloud.weight_bytes],
        "Loss per token": [wording.nats(point.metrics.loss) for point in cloud],
        "Accuracy": [mean_accuracy(point.metrics) for point in cloud],
        "Per generated token": [wording.milliseconds(seconds) for seconds in cloud.latency],
        "Device": [point.metrics.device for point in cloud],
    }
    frame = pd.DataFrame(rows)
    return frame.drop(columns=[n for n in frame if len(frame) and (frame[n] == NOTHING).all()])


def ended_early(trials: Iterable[Trial], run: str) -> pd.DataFrame:
    """Return one row per trial that failed or was stopped, with its reason.

    Args:
        trials: What a search has come to.
        run: Name of its run.
    """
    return pd.DataFrame(
        [
            {
                "Run": run,
                "Trial": trial.name or points.trial_name(trial.number),
                "Ended": ENDED_WORDS[trial.state],
                "Reason": trial.reason or "none was kept",
                "Worker": trial.worker or NOTHING,
            }
            for trial in trials
            if trial.state in ENDED_WORDS
        ]
    )


def answer_differences(
    compared: Mapping[str, Metrics], losses: Mapping[str, Sequence[float]] | None = None
) -> pd.DataFrame:
    """Return one row per two plans that read the same text or answered the same items: how they
    differ with the standard errors of paired differences, and what tells them apart.

    Args:
        compared: Letter -> what was measured.
        losses: Letter -> loss of every evaluation sequence, where they were kept.
    """
    known = losses or {}
    rows = [
        _difference(f"{other} - {one}", (a, b), pairs.losses(known.get(other), known.get(one)))
        for (one, a), (other, b) in combinations(compared.items(), 2)
    ]
    return pd.DataFrame([row for row in rows if row])


def _difference(
    plans: str, measured: tuple[Metrics, Metrics], by_loss: PairedDifference | None
) -> dict[str, str]:
    """Return the row of two plans, the second minus the first; empty where nothing pairs them."""
    a, b = measured
    found = pairs.answers(b, a)
    if found is None and by_loss is None:
        return {}
    error = f" ± {by_loss.error:.4f}" if by_loss is not None else ""
    by = ["loss"] if by_loss is not None and by_loss.is_resolved else []
    # Accuracies differ where the exact test on the items says so, not their error alone.
    test = paired(b, a)
    by += ["accuracy"] if test is not None and test.differs else []
    row = {"Plans": plans, "Loss, nats": f"{b.loss - a.loss:+.4f}{error}"}
    if found is not None:
        row["Accuracy"] = f"{100 * found.mean:+.1f} ± {100 * found.error:.1f} points"
        row["Items differ"] = f"{found.n_changed} of {found.n_items}"
    if test is not None:
        row["McNemar"] = wording_paired.p_words(test.p_value)
    return {**row, "Told apart": f"by {' and '.join(by)}" if by else "no"}


def compare(columns: Mapping[str, Metrics]) -> pd.DataFrame:
    """Return measured numbers row by row, one column per candidate."""
    rows: dict[str, dict[str, str]] = {}
    for name, metrics in columns.items():
        peak = metrics.peak_memory_bytes
        rows[name] = {
            "Loss, nats/token": f"{metrics.loss:.3f}",
            "Perplexity": f"{metrics.perplexity:.2f}",
            "Accuracy": mean_accuracy(metrics),
            "Weights": wording.size(metrics.weight_bytes),
            "Reading": wording.speed(metrics.prefill_tokens_per_second),
            "Writing": wording.speed(metrics.decode_tokens_per_second),
            "Per generated token": wording.milliseconds(_seconds_per_token(metrics)),
            "Training memory, estimated": (
                wording.size(metrics.training_bytes) if metrics.training_bytes else NOTHING
            ),
            "Peak memory": wording.size(peak) if peak is not None else NOTHING,
            "Device": metrics.device,
        } | {
            task: wording.accuracy(result.accuracy, result.standard_error)
            for task, result in sorted(metrics.tasks.items())
        }
    # A row that no candidate fills says nothing.
    frame = pd.DataFrame(rows).fillna(NOTHING)
    return frame.loc[[any(v != NOTHING for v in row) for row in frame.to_numpy()]]


def mean_accuracy(metrics: Metrics) -> str:
    """Return the mean accuracy with its standard error; ``-`` without tasks."""
    if not (metrics.tasks or metrics.accuracy):
        return NOTHING
    return wording.accuracy(metrics.accuracy, metrics.standard_error)


def _seconds_per_token(metrics: Metrics) -> float:
    speed = metrics.decode_tokens_per_second
    return 1.0 / speed if speed else nan


def _accuracy(metrics: Metrics) -> dict[str, str]:
    if not metrics.tasks:
        return {"Accuracy": NOTHING, "Standard error": NOTHING, "acc_norm": NOTHING}
    return {
        "Accuracy": wording.percent(metrics.accuracy),
        "Standard error": f"{100 * metrics.standard_error:.1f} points",
        "acc_norm": wording.accuracy(
            metrics.accuracy_normalized, metrics.standard_error_normalized
        ),
    }


def tasks(metrics: Metrics) -> pd.DataFrame:
    """Return one row per task with its accuracy, ``acc``, and ``acc_norm`` beside it, and the mean
    over all of them last.
    """
    rows = [
        {
            "Task": name,
            "Accuracy": wording.percent(result.accuracy),
            "Standard error": f"{100 * result.standard_error:.1f} points",
            "acc_norm": wording.accuracy(
                result.accuracy_normalized, result.standard_error_normalized
            ),
            "Items": result.n_items,
        }
        for name, result in sorted(metrics.tasks.items())
    ]
    items = sum(result.n_items for result in metrics.tasks.values())
    return pd.DataFrame([*rows, {"Task": "mean", **_accuracy(metrics), "Items": items}])


def does(job: Job) -> str:
    """Return in words what a job was asked for."""
    if job.kind in wording.JOB_TITLES:
        return wording.JOB_TITLES[job.kind]
    titles = [wording.STEP_TITLES.get(step, step) for step in job.steps]
    return ", ".join(titles) if len(titles) <= 3 else f"{titles[0]} to {titles[-1]}"


def progress(job: Job) -> str:
    """Return how far a job is, in words."""
    # Jobs beside the line report the steps that they call on, which is not what they do.
    beside = job.kind in wording.JOB_TITLES and job.kind not in wording.COUNTED_JOBS
    if job.progress is None or beside:
        return NOTHING
    if job.kind in wording.COUNTED_JOBS:
        return f"{job.progress.done} of {job.progress.total}"
    step = wording.STEP_TITLES.get(job.progress.step, job.progress.step)
    return f"{step} {job.progress.done} of {job.progress.total}"


def jobs(found: Sequence[Job], names: Mapping[str, str]) -> pd.DataFrame:
    """Return one row per job, newest first."""
    return pd.DataFrame(
        [
            {
                "Run": names.get(job.run_id, job.run_id),
                "Status": wording.job_status(job.status),
                "Does": does(job),
                "Progress": progress(job),
                "Device": job.device or NOTHING,
                "Worker": job.worker or NOTHING,
                "Queued": wording.day(job.created_at),
                "Job": job.job_id.rpartition(".")[2],
            }
            for job in sorted(found, key=lambda job: job.created_at, reverse=True)
        ]
    )


def disk(sizes: Mapping[str, int], names: Mapping[str, str]) -> pd.DataFrame:
    """Return the bytes of every run on disk, largest first."""
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    return pd.DataFrame(
        [
            {"Run": names.get(key, key), "Id": key, "On disk, measured": wording.size(size)}
            for key, size in ordered
        ]
    )


def workers(found: Sequence[WorkerInfo]) -> pd.DataFrame:
    """Return one row per living worker."""
    return pd.DataFrame(
        [
            {
                "Worker": each.name,
                "Device": each.device,
                "Memory": NOTHING
                if each.memory_bytes is None
                else wording.size(each.memory_bytes),
                "Machine": each.host,
                "Process": str(each.pid),
                "Since": wording.day(each.since),
            }
            for each in found
        ]
    )

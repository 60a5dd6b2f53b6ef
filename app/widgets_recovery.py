"""Pieces of the Recovery page: the live loss, a training that was stopped, and what training
brought back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import streamlit as st

from app import (
    charts_pruning,
    charts_recovery,
    forms_recovery,
    navigation,
    services,
    state,
    tables_recovery,
    widgets,
    widgets_metrics,
    widgets_standing,
    wording,
)
from app.glossary import tip
from app.widgets import Figure
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.paired import Paired, paired
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.jobs import Job

FEWEST_STEPS = 4
"""Steps whose mean says something of a loss."""


def is_settling(record: RunRecord) -> bool:
    """Whether a training was stopped and its worker still measures what was learned: the job
    counts as cancelled from the moment that this is asked for.
    """
    job = services.last_job(record.run_id, "recover")
    if job is None or job.status != "cancelled" or services.job_under_way(record.run_id):
        return False
    at_work = any(
        worker.name == job.worker and wording.seconds_between(worker.since, job.updated_at) >= 0
        for worker in services.jobs().workers()
    )
    reported = charts_recovery.by_step(services.reports(record.run_id, "recover"))
    known = len(record.recover.losses) if record.recover is not None else 0
    return at_work and max(reported, default=0) > known


def settling(record: RunRecord) -> None:
    """Draw a training that was stopped while it is still measured: nothing can be asked for
    until then, and the page starts over.
    """

    def draw() -> None:
        known = services.store().read(record.run_id)
        if not is_settling(known):
            st.rerun()
        st.info("Training has stopped; the worker now measures the adapter as it is.")
        made = charts_recovery.losses(_reported(known), known.spec.recovery.steps)
        st.plotly_chart(made, key="recovery/settling")

    widgets.while_busy(True, draw)


def losses(record: RunRecord, job: Job | None) -> None:
    """Draw the training loss: as it is reported, or of what was trained last.

    Args:
        record: The run as the page found it.
        job: The training under way.
    """
    if job is not None:
        _live(record)
        return
    outcome = record.recover
    if outcome is None:
        st.info(
            "Nothing is trained yet. LoRA adapters learn beside the packed weights, which stay as "
            "they are."
        )
    elif not outcome.losses:
        st.info("Recovery was skipped in this run: it was asked for 0 steps.")
    else:
        heldout = {"before": outcome.before.loss, "after": outcome.after.loss}
        figure = charts_recovery.losses(
            charts_recovery.numbered(outcome.losses), outcome.spec.steps, heldout
        )
        st.plotly_chart(figure, key="recovery/losses")


def _live(record: RunRecord) -> None:
    """Draw loss, step, speed and learning rate of the training under way."""
    known = services.store().read(record.run_id)
    told = services.reports(record.run_id, "recover")
    if not any("loss" in progress.values for progress in told):
        st.info("Training has not reported a loss yet: the model is loaded and packed first.")
        return
    now, spec = told[-1], known.spec.recovery
    found = _reported(known)
    trial = forms_recovery.trial_of(record, spec.trial)
    before = trial.metrics.loss if trial is not None and trial.metrics is not None else None
    figure = charts_recovery.losses(
        found, now.total, {"before": before} if before is not None else None
    )
    st.plotly_chart(figure, key="recovery/live")
    widgets.figures(_live_figures(told, found))
    st.caption(
        f"Step {now.done} of {now.total}; the loss is measured per token on the training text, "
        f"the line is what the plan had on held-out text."
    )


def _reported(known: RunRecord) -> dict[int, float]:
    """Return step -> loss of the newest training, as far as it has told."""
    events = services.store().events(known.run_id, services.N_EVENTS)
    found = charts_recovery.by_step(e.progress for e in events if e.progress.step == "recover")
    if known.recover is not None and not known.recover.is_complete:
        # Steps before it was stopped, should their reports be too long ago.
        found = charts_recovery.numbered(known.recover.losses) | found
    return found


def _live_figures(told: Sequence[Progress], found: Mapping[int, float]) -> list[Figure]:
    """Return the newest numbers of a training; units stand in the labels, as cards are narrow."""
    values = next(p.values for p in reversed(told) if "loss" in p.values)
    made = [
        Figure(
            label="Loss, nats",
            value=f"{found[max(found)]:.3f}",
            term="training_loss",
            origin=wording.MEASURED,
            change=_fall(found),
        )
    ]
    if "tokens_per_second" in values:
        speed = f"{values['tokens_per_second']:,.0f}"
        made.append(
            Figure(label="Tokens/s", value=speed, term="training_speed", origin=wording.MEASURED)
        )
    if "learning_rate" in values:
        rate = f"{values['learning_rate']:.2e}"
        made.append(Figure(label="Learning rate", value=rate, term="learning_rate"))
    return made


def _fall(found: Mapping[int, float]) -> str | None:
    """Return how the mean loss of the newest steps differs from that of the first ones, as single
    steps are noisy; None until there are enough of them.
    """
    in_order = [found[step] for step in sorted(found)]
    several = min(charts_recovery.SMOOTHING, len(in_order) // 2)
    if several < FEWEST_STEPS:
        return None
    return f"{fmean(in_order[-several:]) - fmean(in_order[:several]):+.3f}"


def stopped(record: RunRecord) -> None:
    """Say so where training ended before its last step, with a way to go on."""
    outcome = record.recover
    if outcome is None or outcome.is_complete:
        return
    job = services.last_job(record.run_id, "recover")
    resumable = job is not None and job.status in ("cancelled", "failed")
    if job is not None and job.status == "failed":
        widgets.error_panel(job.error or widgets_standing.NO_REASON)
    with st.container(border=True):
        st.markdown(
            f":orange[:material/pause_circle:] Stopped after {len(outcome.losses)} of "
            f"{outcome.spec.steps} steps; the adapter as it is was kept."
            + (
                ""
                if resumable
                else " Train with the same settings, not in a copy, to go on from there."
            )
        )
        if (
            job is not None
            and resumable
            and st.button(
                "Resume",
                key=f"resume/{job.job_id}",
                icon=":material/play_arrow:",
                help=tip("resume"),
            )
        ):
            job_id = job.job_id
            widgets.ask(lambda: services.jobs().resume(job_id))


def result(record: RunRecord, outcome: RecoveryOutcome, names: Mapping[int, str]) -> None:
    """Draw what was measured before and after."""
    trial = outcome.spec.trial
    name = names.get(trial, "plan") if trial is not None else "plan"
    worse = outcome.after.loss > outcome.before.loss
    st.subheader(f"{'Trained' if worse else 'Recovered'} {name}", anchor=False)
    if worse:
        st.warning(
            f"Training made the held-out loss worse, {wording.nats(outcome.before.loss)} before "
            f"and {wording.nats(outcome.after.loss)} after. Lower the learning rate, train fewer "
            f"steps or choose a training text nearer to the held-out one."
        )
    dense = record.prune.before if record.prune is not None else None
    quality = [
        *widgets_metrics.quality(outcome.before, outcome.after),
        *_recovered(outcome, dense),
        widgets_metrics.weights("With adapter", "adapter", outcome.before, outcome.after),
    ]
    widgets.figures(quality)
    if outcome.losses:
        widgets.figures(_training(outcome))
    st.caption(
        f"Measured on {outcome.after.device}. {wording.count(outcome.trainable_parameters)} "
        f"trainable parameters, {len(outcome.losses)} of {outcome.spec.steps} steps."
    )
    if dense is not None and (recovered_share(dense, outcome) or 0.0) > 1.0:
        st.caption(
            f"Recovered beyond 100 %: the loss after training is below the dense model's "
            f"{wording.nats(dense.loss)}, as the text taught more than compression had cost."
        )
    for sentence in outcome.remarks:
        st.info(sentence)
    if record.search is not None:
        widgets_metrics.warn_over_budget(
            outcome.before.weight_bytes, outcome.after.weight_bytes, record.search.budget_bytes
        )
    _before_after(outcome, dense)
    if outcome.adapter:
        st.page_link(
            navigation.page("export"),
            label="Export this model with its adapter",
            icon=":material/deployed_code:",
            help=tip("export_recovered"),
            query_params=state.address_of(plan=trial),
        )


def recovered_share(dense: Metrics, outcome: RecoveryOutcome) -> float | None:
    """Return the share of the loss that compression cost which training took back; above 1 where
    the model is better than the dense one, None where compression cost nothing.
    """
    cost = outcome.before.loss - dense.loss
    return (outcome.before.loss - outcome.after.loss) / cost if cost > 0 else None


def _recovered(outcome: RecoveryOutcome, dense: Metrics | None) -> list[Figure]:
    share = recovered_share(dense, outcome) if dense is not None else None
    if share is None or share < 0.0 or not outcome.losses:
        return []
    return [
        Figure(
            label="Recovered",
            value=wording.percent(share, 0),
            term="recovered_share",
            origin=wording.MEASURED,
        )
    ]


def _training(outcome: RecoveryOutcome) -> list[Figure]:
    """Return what training took: measured, beside what was estimated beforehand."""
    peak, foreseen = outcome.peak_memory_bytes, outcome.estimated_memory_bytes
    deviation = f"{100 * (peak / foreseen - 1):+.1f} %" if peak is not None and foreseen else None
    made = [
        Figure(
            label="Training memory",
            value=wording.size(peak) if peak is not None else "not counted",
            term="training_memory",
            origin=wording.MEASURED if peak is not None else "",
            change=f"{deviation} against the estimate" if deviation else None,
        ),
        Figure(
            label="Estimated before",
            value=wording.size(foreseen),
            term="training_memory",
            origin=wording.ESTIMATED,
        ),
    ]
    return [*made, *_speed(outcome.tokens_per_second)]


def _speed(tokens_per_second: float | None) -> list[Figure]:
    """Return the speed of training; nothing where it is not known."""
    if tokens_per_second is None:
        return []
    return [
        Figure(
            label="Training speed",
            value=wording.speed(tokens_per_second),
            term="training_speed",
            origin=wording.MEASURED,
        )
    ]


def _before_after(outcome: RecoveryOutcome, dense: Metrics | None) -> None:
    before, after = outcome.before, outcome.after
    if after.tasks:
        chart = charts_pruning.before_after(before, after, ("before recovery", "after recovery"))
        st.plotly_chart(chart, key="recovery/tasks")
    widgets.origin_badge(wording.MEASURED)
    st.dataframe(tables_recovery.before_after(before, after, dense), height="content")
    said = paired_words(paired(after, before))
    if said:
        st.markdown(f":material/balance: {said}", help=tip("paired_test"))


def paired_words(found: Paired | None) -> str:
    """Return the sentence of the paired test between after, the first, and before; empty where
    nothing can be paired.
    """
    if found is None:
        return ""
    return (
        f"After recovery {found.first_only} items are right that were not before, and "
        f"{found.second_only} the other way, of {found.n_items}: p = {found.p_value:.2g}, "
        + ("called different." if found.differs else "not called different.")
    )

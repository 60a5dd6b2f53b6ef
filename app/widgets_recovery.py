"""Pieces of the Recovery page: memory before and after, the live loss, and what training brought
back.
"""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from app import (
    charts_pruning,
    charts_recovery,
    points,
    services,
    tables,
    widgets,
    widgets_metrics,
    wording,
)
from app.widgets import Figure
from qpruner_core.catalog import precision_formats
from qpruner_core.domain.device_memory import TrainingLoad, training_bytes_estimate
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.recovery import RecoverySpec


def estimate(record: RunRecord, spec: RecoverySpec) -> None:
    """Draw the memory that training will take, before it starts."""
    trial = next((t for t in points.trials_of(record) if t.number == spec.trial), None)
    if trial is None or record.layout is None:
        return
    on_cpu = trial.metrics is not None and trial.metrics.device == "cpu"
    load = TrainingLoad(
        rank=spec.rank,
        batch_size=spec.batch_size,
        sequence_length=spec.sequence_length,
        compute_bytes=4 if on_cpu else 2,
    )
    need = training_bytes_estimate(record.layout, trial.plan, precision_formats(), load)
    widgets.figures(
        [
            Figure(
                label="Training memory",
                value=wording.size(need.total),
                term="training_memory",
                origin=wording.ESTIMATED,
            )
        ]
    )
    st.caption(
        f"Packed weights {wording.size(need.weights)}, adapters with optimiser "
        f"{wording.size(need.adapter)}, "
        f"activations {wording.size(need.activations)}, workspace {wording.size(need.workspace)} "
        "(estimated)."
    )


def live_loss(record: RunRecord, spec: RecoverySpec, *, training: bool) -> None:
    """Draw the training loss as it is reported, else the one of the finished training."""
    outcome = services.store().read(record.run_id).recover
    if training:
        told = services.reports(record.run_id, "recover")
        losses = [progress.values["loss"] for progress in told if "loss" in progress.values]
        n_steps = told[-1].total if told else spec.steps
        if not losses:
            st.info("Training has not reported a loss yet.")
            return
        st.plotly_chart(charts_recovery.losses(losses, n_steps), key="recovery/live")
        st.caption(f"Step {told[-1].done} of {n_steps}; loss measured on the training text.")
    elif outcome is None:
        st.info(
            "Nothing is trained yet. LoRA adapters learn beside the packed weights, which stay as "
            "they are."
        )
    elif not outcome.losses:
        st.info("Recovery was skipped in this run: it was asked for 0 steps.")
    else:
        figure = charts_recovery.losses(outcome.losses, len(outcome.losses), outcome.before.loss)
        st.plotly_chart(figure, key="recovery/losses")


def result(
    outcome: RecoveryOutcome, names: Mapping[int, str], budget_bytes: int | None = None
) -> None:
    """Draw what was measured before and after."""
    before, after = outcome.before, outcome.after
    st.subheader(f"Recovered {names.get(outcome.spec.trial or 0, 'plan')}", anchor=False)
    peak = outcome.peak_memory_bytes
    widgets.figures(
        [
            *widgets_metrics.quality(before, after),
            widgets_metrics.weights("With adapter", "adapter", before, after),
            Figure(
                label="Training memory",
                value=wording.size(peak) if peak is not None else "not counted",
                term="training_memory",
                origin=wording.MEASURED if peak is not None else "",
            ),
        ]
    )
    st.caption(
        f"Measured on {after.device}. {wording.count(outcome.trainable_parameters)} trainable "
        "parameters; training "
        f"memory was estimated at {wording.size(outcome.estimated_memory_bytes)} beforehand."
    )
    if budget_bytes is not None:
        widgets_metrics.warn_over_budget(before.weight_bytes, after.weight_bytes, budget_bytes)
    left, right = st.columns(2, gap="large")
    with left:
        if after.tasks:
            chart = charts_pruning.before_after(
                before, after, ("before recovery", "after recovery")
            )
            st.plotly_chart(chart, key="recovery/tasks")
    with right:
        compared = tables.compare({"before": before, "after": after})
        st.dataframe(compared, height="content")

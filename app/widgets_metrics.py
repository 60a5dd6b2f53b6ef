"""Measured numbers before and after a step, and all that a full evaluation tells."""

from __future__ import annotations

import streamlit as st

from app import tables, widgets, wording
from app.glossary import tip
from app.widgets import Figure
from qpruner_core.domain.metrics import Metrics


def quality(before: Metrics, after: Metrics) -> list[Figure]:
    """Return loss and accuracy after a step with their changes; without tasks, the loss alone."""
    loss = Figure(
        label="Loss per token",
        value=wording.nats(after.loss),
        term="loss",
        origin=wording.MEASURED,
        change=f"{after.loss - before.loss:+.3f} nats/token",
    )
    if not after.tasks:
        return [loss]
    accuracy = Figure(
        label="Accuracy",
        value=wording.accuracy(after.accuracy, after.standard_error),
        term="accuracy",
        origin=wording.MEASURED,
        change=wording.points(after.accuracy - before.accuracy),
        lower_is_better=False,
    )
    return [loss, accuracy]


def weights(label: str, term: str, before: Metrics, after: Metrics) -> Figure:
    """Return the bytes of all weights after a step with their change."""
    return Figure(
        label=label,
        value=wording.size(after.weight_bytes),
        term=term,
        origin=wording.MEASURED,
        change=wording.size_change(after.weight_bytes, before.weight_bytes),
    )


def warn_over_budget(plain_bytes: int, with_adapter_bytes: int, budget_bytes: int) -> None:
    """Say where it is the adapter that takes a model over its memory budget."""
    if plain_bytes <= budget_bytes < with_adapter_bytes:
        st.warning(
            f"With its adapter the model takes {wording.size(with_adapter_bytes)}, more than the "
            f"memory budget of {wording.size(budget_bytes)}. Train a lower rank, or choose a "
            "smaller plan."
        )


def full(metrics: Metrics) -> None:
    """Draw a full evaluation: every task with its standard error, and how fast it reads and
    writes.
    """
    st.subheader("The pruned model at 16 bit, evaluated in full", anchor=False)
    widgets.figures(
        [
            _speed("Reading", metrics.prefill_tokens_per_second, term="prefill"),
            _speed("Writing", metrics.decode_tokens_per_second, term="decode"),
        ]
    )
    if metrics.tasks:
        columns = {
            "Accuracy": st.column_config.TextColumn("Accuracy", help=tip("accuracy")),
            "acc_norm": st.column_config.TextColumn("acc_norm", help=tip("acc_norm")),
        }
        st.dataframe(tables.tasks(metrics), hide_index=True, column_config=columns)
    st.caption(
        f"Loss {wording.nats(metrics.loss)} per token, measured on {metrics.device} in "
        f"{wording.seconds(metrics.seconds)}." + _spread(metrics)
    )


def _spread(metrics: Metrics) -> str:
    """Return on what the speeds were measured and how far they spread; empty in older records."""
    timed = metrics.speed
    if timed is None:
        return ""
    spec = timed.spec
    return (
        f" Speeds are medians of {spec.n_repetitions} repetitions after one that warms up, at "
        f"batch {spec.batch} and a context of {spec.context} tokens; quartiles: reading "
        f"{timed.prefill.lower:,.0f} to {timed.prefill.upper:,.0f}, writing "
        f"{timed.decode.lower:,.0f} to {timed.decode.upper:,.0f} tokens/s."
    )


def _speed(label: str, tokens_per_second: float | None, *, term: str) -> Figure:
    origin = wording.MEASURED if tokens_per_second is not None else ""
    return Figure(label=label, value=wording.speed(tokens_per_second), term=term, origin=origin)

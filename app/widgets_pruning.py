"""Pieces of the Pruning page: sizes as the slider moves, and what was measured after the job."""

from __future__ import annotations

import streamlit as st

from app import charts_pruning, widgets, widgets_metrics, wording
from app.widgets import Figure
from qpruner_core.domain.footprint import dense_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.record import PruningOutcome
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.pruning.selection import protected_layers

KV_TOKENS = 2048


def sizes(dense: ModelLayout, pruned: ModelLayout) -> None:
    """Draw parameters, bytes and KV cache before anything is cut."""
    gone = 1 - pruned.parameters / dense.parameters
    cache, cache_before = (m.kv_cache_bytes(KV_TOKENS) for m in (pruned, dense))
    widgets.figures(
        [
            Figure(
                label="Parameters",
                value=wording.count(pruned.parameters),
                term="parameters",
                origin=wording.ESTIMATED,
                change=f"-{wording.percent(gone)}" if gone else None,
            ),
            Figure(
                label="At 16 bit",
                value=wording.size(dense_bytes(pruned)),
                term="dense_bytes",
                origin=wording.ESTIMATED,
                change=wording.size_change(dense_bytes(pruned), dense_bytes(dense))
                if gone
                else None,
            ),
            Figure(
                label="KV cache",
                value=wording.size(cache),
                term="kv_cache",
                origin=wording.ESTIMATED,
                change=wording.size_change(cache, cache_before) if cache != cache_before else None,
            ),
        ]
    )


def protected_line(n_layers: int, spec: PruningSpec) -> None:
    """Name the layers that lose nothing."""
    kept = sorted(protected_layers(n_layers, spec))
    names = ", ".join(str(layer) for layer in kept) or "none"
    st.caption(f"Protected layers: {names}. KV cache of {KV_TOKENS:,} tokens at 16 bit.")


def result(outcome: PruningOutcome) -> None:
    """Draw what the job measured before and after, with continuations to read."""
    before, after = outcome.before, outcome.after
    gone = 1 - outcome.parameters_after / outcome.parameters_before
    st.subheader(f"Pruned at {wording.percent(outcome.spec.ratio, 0)}", anchor=False)
    widgets.figures(
        [
            *widgets_metrics.quality(before, after),
            widgets_metrics.weights("At 16 bit", "weight_bytes", before, after),
            Figure(
                label="Parameters",
                value=wording.count(outcome.parameters_after),
                term="parameters",
                origin=wording.MEASURED,
                change=f"-{wording.percent(gone)}",
            ),
        ]
    )
    st.caption(f"Measured on {after.device}; changes are against the dense model.")
    for sentence in outcome.warnings:
        st.warning(sentence)
    if after.tasks:
        st.plotly_chart(
            charts_pruning.before_after(before, after, ("dense", "pruned")), key="pruning/tasks"
        )
    _samples(outcome.samples)


def _samples(samples: tuple[tuple[str, str, str], ...]) -> None:
    for prompt, dense, pruned in samples:
        with st.container(border=True):
            st.markdown(f"**Prompt** · {prompt}")
            left, right = st.columns(2)
            left.caption("The dense model continues")
            left.text(dense)
            right.caption("The pruned model continues")
            right.text(pruned)

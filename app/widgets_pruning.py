"""Pieces of the Pruning page: sizes and units as the slider moves, and what was measured after the
job.
"""

from __future__ import annotations

from collections.abc import Callable

import plotly.graph_objects as go
import streamlit as st

from app import (
    charts_base,
    charts_pruning,
    charts_units,
    services,
    units,
    widgets,
    widgets_metrics,
    wording,
)
from app.forms_pruning import Asked
from app.widgets import Figure
from qpruner_core.domain.footprint import dense_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.record import PruningOutcome, RunRecord
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.errors import QPrunerError
from qpruner_core.pruning.selection import Selection, protected_layers

KV_TOKENS = 2048
SHARE_IS_SAID = "of the parameters of the layers leave rather than"
"""Part of the selection's own sentence on a share that is not the one asked for."""


def preview(record: RunRecord, dense: ModelLayout, asked: Asked) -> Selection | None:
    """Draw what would leave, before anything is cut; None where nothing can do what is asked."""
    try:
        chosen = services.preview(record, dense, asked.pruning, scored=asked.is_scored)
    except QPrunerError as error:
        widgets.error_panel(str(error))
        return None
    sizes(dense, chosen.layout)
    st.plotly_chart(picture(dense, chosen.plan), key="pruning/preview", config=charts_base.PLAIN)
    _explanation(dense, chosen, asked)
    for sentence in chosen.warnings:
        st.warning(sentence)
    return chosen


def sizes(dense: ModelLayout, pruned: ModelLayout) -> None:
    """Draw parameters, bytes and KV cache, each with what it was before."""
    whole, left = dense_bytes(dense), dense_bytes(pruned)
    cached, caches = (layout.kv_cache_bytes(KV_TOKENS) for layout in (dense, pruned))
    count, size = wording.count, wording.size
    widgets.figures(
        [
            _fallen("Parameters", dense.parameters, pruned.parameters, count, term="parameters"),
            _fallen("At 16 bit", whole, left, size, term="dense_bytes"),
            _fallen("KV cache", cached, caches, size, term="kv_cache"),
        ]
    )


def _fallen(
    label: str, before: int, after: int, words: Callable[[float], str], *, term: str
) -> Figure:
    return Figure(
        label=label,
        value=words(after),
        term=term,
        origin=wording.ESTIMATED,
        change=wording.percent_change(after, before),
        before=words(before) if after != before else "",
    )


def picture(dense: ModelLayout, plan: PruningPlan) -> go.Figure:
    """Return which units of every layer stay."""
    panels = units.panels(dense, plan)
    return charts_units.kept_units(panels, plan.dropped_layers, dense.n_layers)


def _explanation(dense: ModelLayout, chosen: Selection, asked: Asked) -> None:
    """Say what share leaves, which layers lose nothing, and what the picture rests on."""
    spec = asked.pruning
    whole = sum(dense.layer_parameters)
    gone = 1 - sum(chosen.layout.layer_parameters) / whole if whole else 0.0
    share = (
        f"{wording.percent(gone)} of the parameters of the decoder layers leave, "
        f"{wording.percent(spec.ratio, 0)} were asked for. "
    )
    if any(SHARE_IS_SAID in sentence for sentence in chosen.warnings):
        share = ""
    st.caption(
        f"{share}{_protected(dense.n_layers, spec)} KV cache of {KV_TOKENS:,} tokens at 16 bit."
    )
    if not asked.is_scored:
        inexact = spec.scope != "per-layer"
        st.caption(
            "Which units leave is decided from scores that this run has not yet; the picture "
            "shows how many" + (", and with this scope even that may change." if inexact else ".")
        )
    elif spec.iterations > 1:
        st.caption("Later rounds score what is left anew, so that other units may leave.")


def _protected(n_layers: int, spec: PruningSpec) -> str:
    kept = sorted(protected_layers(n_layers, spec))
    return f"Protected layers: {', '.join(map(str, kept)) or 'none'}."


def result(outcome: PruningOutcome, dense: ModelLayout, run_id: str) -> None:
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
    with st.expander("Which units left", expanded=False):
        left = services.once(f"left/{run_id}", outcome, lambda: picture(dense, outcome.plan))
        st.plotly_chart(left, key="pruning/left", config=charts_base.PLAIN)
    if after.tasks:
        words = ("dense", "pruned")
        tasks = services.once(
            f"tasks/{run_id}",
            outcome,
            lambda: charts_pruning.before_after(before, after, words),
        )
        st.plotly_chart(tasks, key="pruning/tasks")
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

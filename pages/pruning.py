"""How much can go?"""

import streamlit as st

from app import (
    charts_base,
    charts_pruning,
    forms,
    services,
    state,
    widgets,
    widgets_metrics,
    widgets_pruning,
)

widgets.title("pruning")
record = state.require_run()
job = widgets.status(record, "prune")
card = record.load or services.model_card(record.spec.model)
scored = record.score.spec.criteria if record.score is not None else ()

left, right = st.columns([2, 3], gap="large")
with left:
    spec = forms.pruning_form(record.spec.pruning, card.layout, scored)
    asked = widgets.with_part(record.spec, pruning=spec)
    widgets.start(record, asked, "prune", "Prune", busy=job is not None)
with right:
    preview = services.preview(record, card.layout, spec)
    widgets_pruning.sizes(card.layout, preview.layout)
    st.plotly_chart(
        charts_pruning.kept_units(card.layout, preview.layout),
        key="pruning/preview",
        config=charts_base.PLAIN,
    )
    widgets_pruning.protected_line(card.layout.n_layers, spec)
    if record.score is None:
        st.caption(
            "Sizes are exact; which units leave is decided from the scores, which this run has "
            "not yet."
        )
    for sentence in preview.warnings:
        st.warning(sentence)

if record.prune is None:
    if job is None:
        st.info(
            "Nothing is pruned yet. The figures above answer the slider from the model's headers "
            "alone."
        )
else:
    widgets_pruning.result(record.prune)
if record.evaluate is not None:
    widgets_metrics.full(record.evaluate)

"""How much can go?"""

import streamlit as st

from app import (
    forms_pruning,
    services,
    state,
    widgets,
    widgets_compare,
    widgets_metrics,
    widgets_pruning,
    widgets_standing,
    widgets_streaming,
)

widgets.title("pruning")
record = state.require_run()
job = widgets_standing.status(record, "prune")
card = record.load or services.model_card(record.spec.model)

left, right = st.columns([2, 3], gap="large")
with left:
    form = forms_pruning.pruning_form(record, card.layout)
    button = st.container()
if form is not None:
    with right:
        chosen = widgets_pruning.preview(record, card.layout, form)
    with button:
        asked = widgets.with_part(record.spec, pruning=form.pruning, importance=form.importance)
        redo = None if form.is_scored or record.score is None else "score"
        blocked = job is not None or chosen is None
        widgets.start(record, asked, "prune", "Prune", redo=redo, busy=blocked)

if record.prune is None:
    if job is None:
        st.info(
            "Nothing is pruned yet. The figures above answer the slider before anything is cut."
        )
else:
    widgets_pruning.result(record.prune, card.layout, record.run_id)
if record.evaluate is not None:
    widgets_metrics.full(record.evaluate)
# What was measured stays in sight while the form asks for something that cannot be.
widgets_compare.panel(record, form, busy=job is not None)
widgets_streaming.panel(record, card.layout, form, busy=job is not None)

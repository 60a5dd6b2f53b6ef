"""Can training bring it back?"""

import streamlit as st

from app import forms_search, points, state, widgets, widgets_recovery, widgets_standing

widgets.title("recovery")
record = state.require_run()
job = widgets_standing.status(record, "recover")

if record.search is None or record.layout is None:
    st.info("Recovery trains on a measured plan. Search first, on the Search page.")
    st.stop()

names = {p.number: p.name for p in points.of_run(record) if p.number is not None}
left, right = st.columns([2, 3], gap="large")
with left:
    spec = forms_search.recovery_form(record.spec.recovery, names, record.search.chosen)
    widgets_recovery.estimate(record, spec)
    asked = widgets.with_part(record.spec, recovery=spec)
    widgets.start(record, asked, "recover", "Train", busy=job is not None)
with right:
    training = job is not None and "recover" in job.steps
    widgets.while_busy(
        training, lambda: widgets_recovery.live_loss(record, spec, training=training)
    )

if record.recover is not None:
    widgets_recovery.result(record.recover, names, record.search.budget_bytes)

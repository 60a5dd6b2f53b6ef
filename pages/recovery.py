"""Can training bring it back?"""

import streamlit as st

from app import (
    forms_recovery,
    points,
    state,
    widgets,
    widgets_recovery,
    widgets_standing,
    widgets_training,
)

widgets.title("recovery")
record = state.require_run()
if widgets_recovery.is_settling(record):
    widgets_standing.strip(record, None)
    widgets_recovery.settling(record)
    st.stop()
job = widgets_standing.status(record, "recover")

if record.search is None or record.layout is None:
    st.info("Recovery trains on a measured plan. Search first, on the Search page.")
    st.stop()

names = {p.number: p.name for p in points.of_run(record) if p.number is not None}
training = job if job is not None and "recover" in job.steps else None
if job is None:
    widgets_recovery.stopped(record)
left, right = st.columns([2, 3], gap="large")
with left:
    spec = forms_recovery.recovery_form(record, names)
    asked = widgets.with_part(record.spec, recovery=spec or record.spec.recovery)
    blocked = job is not None or spec is None
    widgets.start(record, asked, "recover", "Train", busy=blocked)
with right:
    widgets.while_busy(training is not None, lambda: widgets_recovery.losses(record, training))
    if spec is not None and spec.steps:
        widgets_training.estimate(record, spec)

if record.recover is not None and training is None:
    widgets_recovery.result(record, record.recover, names)

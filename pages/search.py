"""Which precision where?"""

import streamlit as st

from app import (
    services,
    state,
    widgets,
    widgets_best,
    widgets_search,
    widgets_signals,
    widgets_standing,
    widgets_trials,
)

widgets.title("search")
record = state.require_run()
job = widgets_standing.status(record, "search", widgets_trials.steer)
card = record.load or services.model_card(record.spec.model)
layout = record.layout or card.layout

left, right = st.columns([1, 2], gap="medium")
with left:
    asked = widgets_search.asked(record, card.layout, layout)
    widgets_search.start(record, asked, busy=job is not None)
spec = asked or record.spec.search
with right:
    widgets_trials.remarks(record)
    widgets_search.empty(record, spec, busy=job is not None)
    widgets.while_busy(
        job is not None,
        lambda: widgets_search.live(record, spec, card.layout, job),
    )

widgets.while_busy(job is not None, lambda: widgets_best.panel(record, spec, card.layout))
widgets_signals.panel(record, spec.signal)

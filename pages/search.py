"""Which precision where?"""

import streamlit as st

from app import forms_search, services, state, widgets, widgets_search

widgets.title("search")
record = state.require_run()
job = widgets.status(record, "search")
card = record.load or services.model_card(record.spec.model)
layout = record.layout or card.layout

left, right = st.columns([1, 2], gap="medium")
with left:
    spec = forms_search.search_form(record.spec.search)
    spec = widgets_search.with_budget(spec, card.layout, layout)
    asked = widgets.with_part(record.spec, search=spec)
    widgets.start(
        record,
        asked,
        "search",
        "Search",
        redo=widgets_search.outdated(record, spec),
        busy=job is not None,
    )
with right:
    if record.quantize is None:
        st.info(
            "The predicted front appears seconds after the sensitivities are measured. "
            + (
                "Start the search: it measures them first, then tries plans on the pruned model."
                if job is None
                else "Measured plans then join it one by one."
            )
        )
    widgets.while_busy(
        job is not None, lambda: widgets_search.live_front(record, spec, card.layout)
    )

widgets_search.best(record, spec, card.layout)

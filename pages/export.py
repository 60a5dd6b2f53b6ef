"""How do I use it?"""

import streamlit as st

from app import forms_search, points, state, widgets, widgets_export, widgets_standing

widgets.title("export")
record = state.require_run()
job = widgets_standing.status(record, "export")

if record.search is None:
    st.info("An export writes a measured plan. Search first, on the Search page.")
    st.stop()

names = {p.number: p.name for p in points.of_run(record) if p.number is not None}
left, right = st.columns([2, 3], gap="large")
with left:
    recovered = record.recover
    adapted = recovered.spec.trial if recovered is not None and recovered.adapter else None
    spec = forms_search.export_form(record.spec.export, names, record.search.chosen, adapted)
    asked = widgets.with_part(record.spec, export=spec)
    # Recovery is not asked for by an export: a run without it exports the packed plan as it is.
    widgets_export.start(record, asked, busy=job is not None)
with right:
    widgets_export.refused(record)
    if record.export is None:
        st.info(
            "Nothing is exported yet. The export ends with a reload in a fresh process, and its "
            "logits are "
            "compared with those of the model in memory."
        )
    else:
        widgets_export.result(record, record.export)

if record.export is not None:
    widgets_export.how_to_use(record.export)
st.divider()
widgets_export.prompt_box(record, names)

"""What is every layer worth?"""

import streamlit as st

from app import (
    charts_base,
    charts_importance,
    forms,
    state,
    tables_importance,
    widgets,
    widgets_importance,
    widgets_standing,
)

widgets.title("importance")
record = state.require_run()
job = widgets_standing.status(record, "score")
outcome = record.score

with st.expander("Score", expanded=outcome is None and job is None):
    spec = forms.importance_form(record.spec.importance)
    asked = widgets.with_part(record.spec, importance=spec)
    widgets.start(record, asked, "score", "Start scoring", busy=job is not None)

if outcome is None:
    if job is None:
        st.info(
            "Nothing is scored yet. Choose criteria and start; the demo model takes under a "
            "minute."
        )
    else:
        st.info("The table of layers appears once all criteria have scored.")
    st.stop()

st.caption(
    f"Measured on {outcome.device} over {outcome.n_tokens:,} calibration tokens. Colour is the "
    "share "
    f"of the largest value in the row; click a cell to see its units."
)
for sentence in outcome.warnings:
    st.warning(sentence)
known = list(dict.fromkeys(cell.criterion for cell in outcome.cells))
shown = widgets_importance.criteria_field(known)
rows = tables_importance.rows(outcome, shown, record.quantize)
if not rows:
    st.info("No criterion is shown. Choose at least one above.")
    st.stop()
n_layers = 1 + max(cell.layer for cell in outcome.cells)
key, layer = widgets_importance.cell_fields(rows, n_layers)

st.plotly_chart(
    charts_importance.heatmap(rows, n_layers, (key, layer)),
    key=widgets_importance.HEATMAP,
    on_select=widgets_importance.take_click,
    selection_mode="points",
    config=charts_base.PLAIN,
)
left, right = st.columns(2, gap="large")
with left:
    widgets_importance.units_panel(record, key, layer)
with right:
    widgets_importance.sensitivity_panel(record, layer)

with st.expander("Do the criteria agree?", expanded=bool(outcome.agreement)):
    widgets_importance.agreement_panel(outcome, rows)

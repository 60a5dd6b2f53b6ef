"""What do you want to compress?"""

import streamlit as st

from app import forms, forms_data, services, state, tables, widgets, widgets_runs, widgets_standing
from app.glossary import tip

widgets.title("runs")

records = services.store().list()
if not records:
    widgets_runs.first_start()

chosen = next((record for record in records if record.run_id == state.run_id()), None)
busy = services.job_under_way(chosen.run_id) if chosen is not None else None
if chosen is not None:
    st.subheader(state.run_name(chosen), anchor=False)
    if busy is not None:
        widgets_standing.running(chosen, busy)
    else:
        widgets_standing.strip(chosen, services.newest_job(chosen.run_id))
        widgets_runs.failed_face(chosen)

if records:
    st.subheader("Runs", anchor=False)
    st.dataframe(
        tables.runs(records, services.jobs().list()),
        hide_index=True,
        key="runs/table",
        column_config=widgets.widths(tables.RUN_WIDTHS),
    )
    widgets_runs.actions(records)

st.subheader("New run", anchor=False)
left, right = st.columns([2, 3], gap="large")
with left:
    spec = forms.model_form()
    name = st.text_input("Name of the run", help=tip("run_name"), placeholder="optional")
    data = forms_data.data_form(spec) if spec is not None else None
    if spec is not None and data is not None:
        widgets_runs.new_run(spec, data, name)
with right:
    if spec is None:
        st.info("Give a folder or a hub id, and the model's card is read from its headers.")
    else:
        widgets_runs.model_card(spec)

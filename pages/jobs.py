"""What is the machine doing?"""

import streamlit as st

from app import services, state, tables, widgets, widgets_jobs

widgets.title("jobs")
records = services.store().list()
names = {record.run_id: state.run_name(record) for record in records}
found = services.jobs().list()

widgets_jobs.workers()
widgets.while_busy(widgets_jobs.is_busy(found), lambda: widgets_jobs.under_way(names))

st.subheader("All jobs", anchor=False)
if not found:
    st.info(
        "No job was started yet. Start one on the Runs page; it appears here with its progress."
    )
else:
    st.dataframe(
        tables.jobs(found, names), hide_index=True, column_config=widgets.widths(tables.JOB_WIDTHS)
    )
    widgets_jobs.actions(found, names)

if records:
    st.subheader("Log of a run", anchor=False)
    run_id = widgets_jobs.run_field(names)
    widgets.while_busy(widgets_jobs.is_busy(found), lambda: widgets_jobs.log(run_id))
    st.subheader("Disk", anchor=False)
    widgets_jobs.disk(names)

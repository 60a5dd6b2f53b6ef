"""Which one do I take?"""

import streamlit as st

from app import (
    services,
    state,
    widgets,
    widgets_compare_plans,
    widgets_filters,
    widgets_findings,
    widgets_plan_editor,
    widgets_reproduction,
    widgets_results,
    widgets_standing,
)
from app.clouds import Cloud

widgets.title("results")
record = state.require_run()
job = widgets_standing.status(record, "search")
widgets_standing.failed_beside(record, "measure")

known = services.store().list()
records = widgets_results.runs_field(record, known)
clouds = {each.run_id: widgets_results.cloud_of(each) for each in records}
found = Cloud.joined(list(clouds.values()))
if not found.has_plan.any():
    if record.reproduction is None:
        st.info("Nothing has been measured in these runs yet. Start a search on the Search page.")
    widgets_reproduction.panel(record, known, busy=job is not None, alone=True)
    st.stop()

widgets_findings.remarks(records)
weighed = widgets_results.weighed_fields(record, found)
compared = widgets_compare_plans.plan_fields(found, record)
shown = widgets_filters.filtered(found, records)
widgets_results.front(shown, record, weighed, compared)
widgets_findings.joint_line(records, clouds, weighed[0])
widgets_results.data_lines(records)

owners = {each.run_id: each for each in records}
widgets_compare_plans.maps(compared, owners)
widgets_compare_plans.numbers(compared)

first = compared["A"]
if record.search is not None and first.run_id == record.run_id:
    trials = services.trials(record)
    widgets_plan_editor.editor(record, first, trials, busy=job is not None)
widgets_findings.hypervolume(clouds, records, weighed)
widgets_results.all_plans(found, weighed[0], records)
widgets_results.dashboard_link(record)
widgets_reproduction.panel(record, known, busy=job is not None)

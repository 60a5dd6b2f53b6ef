"""Which one do I take?"""

import streamlit as st

from app import points, services, state, tables, widgets, widgets_results

widgets.title("results")
record = state.require_run()
job = widgets.status(record, "search")
widgets.failed_beside(record, "measure")

records = widgets_results.runs_field(record, services.store().list())
found = [point for each in records for point in points.of_run(each, services.trials(each))]
if not any(point.plan is not None for point in found):
    st.info("Nothing has been measured in these runs yet. Start a search on the Search page.")
    st.stop()

objective = widgets_results.objective_field(record)
a, b = widgets_results.plan_fields(found, record)
widgets_results.front(found, record, objective, a, b)
widgets_results.data_lines(records)

left, right = st.columns([3, 2], gap="large")
with left:
    for letter, point in (("A", a), ("B", b)):
        owner = next(each for each in records if each.run_id == point.run_id)
        st.markdown(f"**{letter} · {point.name}** · {point.run_name}")
        if owner.layout is not None and point.plan is not None:
            widgets.layer_map(owner.layout, point.plan, f"results/map/{letter}")
with right:
    widgets.origin_badge("measured")
    compared = tables.compare({"A": a.metrics, "B": b.metrics})
    st.dataframe(compared, height="content")

if record.search is not None and a.run_id == record.run_id:
    widgets_results.plan_editor(record, a, busy=job is not None)
with st.expander("All measured plans", expanded=False):
    st.caption(
        "Every row is a plan measured on the pruned model, baselines and plans by hand too."
    )
    st.dataframe(tables.measured(found), hide_index=True)

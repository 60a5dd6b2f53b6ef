"""Pieces of the Results page: which runs, the front that takes clicks, how fast it was reached,
and what the search says of itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from app import (
    charts_front,
    dashboards,
    forms_data,
    forms_search,
    points,
    services,
    state,
    tables,
    thinning,
    widgets,
    widgets_compare_plans,
    wording,
)
from app.charts_front import FrontView
from app.clouds import Cloud
from app.glossary import tip
from app.points import Point
from app.widgets_compare_plans import FRONT
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import COSTS, OBJECTIVES
from qpruner_core.errors import QPrunerError

COST_WORDS = {
    "weight_bytes": "Weights",
    "training_memory": "Training memory",
    "latency": "Latency",
}
N_ROWS = 500
"""Rows of the table of all plans; with more of them the best are shown."""
_WITH = "results/with"


def runs_field(record: RunRecord, records: Sequence[RunRecord]) -> list[RunRecord]:
    """Ask which other runs stand on the same front; the address carries them."""
    others = {r.run_id: r for r in records if r.run_id != record.run_id and r.search is not None}
    named = [key for key in (state.selection("with") or "").split(",") if key in others]
    if not others:
        return [record]
    state.set_widget(_WITH, named)
    picked = st.multiselect(
        "Other runs on this front",
        list(others),
        format_func=lambda key: state.run_name(others[key]),
        key=_WITH,
        on_change=_take_runs,
        help=tip("compare"),
    )
    return [record, *(others[key] for key in picked)]


def _take_runs() -> None:
    picked = state.widget(_WITH)
    state.select("with", ",".join(picked) if isinstance(picked, list) and picked else None)


def cloud_of(record: RunRecord) -> Cloud:
    """Return all points of a run, its plans made anew only when more of them are measured."""
    measured = services.measured(record)
    return Cloud.joined([measured, Cloud(points.references(record, measured))])


def weighed_fields(record: RunRecord, found: Cloud) -> tuple[str, str]:
    """Ask what is weighed against what; returns objective and cost."""
    spec = record.search.spec if record.search is not None else record.spec.search
    measured = found.where(found.has_plan)
    costs = [cost for cost in COSTS if not all(measured.cost(cost) != measured.cost(cost))]
    with st.container(horizontal=True, gap="large"):
        objective = st.segmented_control(
            "Weigh",
            OBJECTIVES,
            default=spec.objective,
            required=True,
            format_func=forms_search.OBJECTIVE_WORDS.__getitem__,
            help=tip("objective"),
        )
        cost = costs[0]
        if len(costs) > 1:
            cost = st.segmented_control(
                "Against",
                costs,
                default=spec.cost if spec.cost in costs else costs[0],
                required=True,
                format_func=COST_WORDS.__getitem__,
                help=tip("cost_axis"),
            )
    return str(objective), str(cost)


def front(
    shown: Cloud, record: RunRecord, weighed: tuple[str, str], compared: Mapping[str, Point]
) -> None:
    """Draw the front of all runs; a click makes the point plan A, a box or a lasso compares.

    Args:
        shown: The points that pass the filters.
        record: The run of the page, whose budget is drawn.
        weighed: Objective and cost.
        compared: Letter -> plan.
    """
    objective, cost = weighed
    view = FrontView(
        objective=objective,
        cost=cost,
        budget_bytes=record.search.budget_bytes if record.search is not None else None,
        letters={point.key: letter for letter, point in compared.items()},
        zoom=st.toggle("Zoom to the front", value=True, help=tip("zoom")),
    )
    made = charts_front.front(shown, view)
    st.plotly_chart(
        made,
        key=FRONT,
        on_select=lambda: widgets_compare_plans.take_pick(shown, objective, cost),
        selection_mode=("points", "box", "lasso"),
    )
    st.caption(
        "Every point is measured. Click one to make it plan A; draw a box or a lasso to compare "
        "up to four."
        + widgets_compare_plans.selected_words()
        + outside_words(charts_front.n_outside(shown, view))
        + thinned_words(charts_front.n_drawn(made), len(shown))
    )


def thinned_words(n_drawn: int, n_points: int) -> str:
    """Return the sentence on marks that stand for others too; empty where every point has one.

    Points that a picture leaves out for another reason are few, and told of elsewhere.
    """
    if n_points <= thinning.N_ALL or n_drawn >= n_points:
        return ""
    return (
        f" {n_drawn:,} of {n_points:,} are drawn: where marks would cover each other, the best "
        f"plan stands for all; the front, baselines, named plans and the newest trials are always "
        f"drawn."
    )


def outside_words(n_points: int) -> str:
    """Return the sentence on points at the edge; empty without any."""
    if not n_points:
        return ""
    if n_points == 1:
        return " 1 point lies far outside and stands at the edge as a triangle."
    return f" {n_points:,} points lie far outside and stand at the edge as triangles."


def data_lines(records: Sequence[RunRecord]) -> None:
    """Say which text and tasks the numbers rest on, and where runs differ in them."""
    lines = {wording.data(record.spec.data): record for record in records}
    for words, record in lines.items():
        name = f" ({state.run_name(record)})" if len(lines) > 1 else ""
        st.caption(f"Measured on {words}{name}.")
    if len(lines) > 1:
        st.warning("These runs were measured on different data, so their numbers do not compare.")
    for record in records:
        steps = record.search.spec.recover_steps if record.search is not None else 0
        if steps:
            name = f" of {state.run_name(record)}" if len(records) > 1 else ""
            st.caption(f"Plans{name} were measured after {steps} steps of recovery each.")
        forms_data.warn_of_demo(record.spec.model, record.spec.data)


def all_plans(found: Cloud, objective: str, records: Sequence[RunRecord]) -> None:
    """Draw the tables of what was measured, and of trials that gave no point, with reasons."""
    with st.expander("All measured plans", expanded=False):
        st.caption(
            "Every row is a plan measured on the pruned model, baselines and plans by hand too."
        )
        rows = found
        if len(found) > N_ROWS:
            kept = found.badness(objective).argsort(kind="stable")[:N_ROWS]
            rows = Cloud([found[int(index)] for index in sorted(kept)])
            st.caption(f"The {N_ROWS} of {len(found):,} with the best {objective} are shown.")
        st.dataframe(tables.measured(rows), hide_index=True)
    for record in records:
        ended = tables.ended_early(services.trials(record), state.run_name(record))
        if len(ended):
            counts = ended["Ended"].value_counts()
            told = ", ".join(f"{n} {words}" for words, n in counts.items())
            with st.expander(f"Trials without a point: {told}", expanded=False):
                st.dataframe(ended.head(N_ROWS), hide_index=True)


def dashboard_link(record: RunRecord) -> None:
    """Offer the study in optuna-dashboard, which starts beside the app when it is asked for."""
    storage, label = services.store().study_url(), "Open the study in optuna-dashboard"
    study = record.search.study_name if record.search is not None else record.study_name
    held = dashboards.dashboards()
    try:
        if held.is_open(storage):
            st.link_button(
                label, held.open(storage, study), icon=":material/open_in_new:", help=tip("study")
            )
        elif st.button(label, icon=":material/query_stats:", help=tip("study")):
            with st.spinner("Starting optuna-dashboard"):
                held.open(storage, study)
            st.rerun()
    except QPrunerError as error:
        widgets.error_panel(str(error))
    st.caption(
        "It runs beside the app, on 127.0.0.1 of the machine that serves this page, and ends with "
        "it. It shows all studies of this home folder and can also delete them: a study that is "
        "deleted there is lost for this app too."
    )

"""Pieces of the Results page: which runs, the front that takes clicks, how fast it was reached,
and what the search says of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import streamlit as st

from app import (
    charts_front,
    charts_hypervolume,
    dashboards,
    forms_data,
    forms_search,
    points,
    services,
    state,
    tables,
    widgets,
    widgets_compare_plans,
    wording,
)
from app.charts_front import FrontView
from app.charts_hypervolume import Corner
from app.clouds import Cloud, Floats
from app.glossary import tip
from app.points import Point
from app.widgets_compare_plans import FRONT
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import COSTS, OBJECTIVES
from qpruner_core.errors import QPrunerError

T = TypeVar("T")

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
    plans = services.measured(record)
    return Cloud.joined([plans, Cloud(points.references(record, plans))])


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
    st.plotly_chart(
        charts_front.front(shown, view),
        key=FRONT,
        on_select=lambda: widgets_compare_plans.take_pick(shown, objective, cost),
        selection_mode=("points", "box", "lasso"),
    )
    st.caption(
        "Every point is measured. Click one to make it plan A; draw a box or a lasso to compare "
        "up to four."
        + widgets_compare_plans.selected_words()
        + outside_words(charts_front.n_outside(shown, view))
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
        forms_data.warn_of_demo(record.spec.model, record.spec.data)


def remarks(records: Sequence[RunRecord]) -> None:
    """Show what the searches say of themselves, such as that the text was too small."""
    for record in records:
        for remark in record.search.remarks if record.search is not None else ():
            name = f"**{state.run_name(record)}:** " if len(records) > 1 else ""
            st.warning(f"{name}{remark}", icon=":material/info:")


def hypervolume(
    clouds: Mapping[str, Cloud], records: Sequence[RunRecord], weighed: tuple[str, str]
) -> None:
    """Draw the area that the measured front covers after every trial, of all runs.

    Args:
        clouds: Run -> its points, all of them.
        records: The runs; the first one fixes the corner.
        weighed: Objective and cost.
    """
    objective, cost = weighed
    record = records[0]
    corner = charts_hypervolume.corner_of(clouds[record.run_id], objective, cost)
    if corner is None:
        return
    curves = {
        state.run_name(each): _areas(clouds[each.run_id], weighed, corner) for each in records
    }
    whole = max(float(reached[-1]) for reached in curves.values())
    if whole <= 0 or max(len(reached) for reached in curves.values()) < 2:
        return
    predicted = _predicted_area(record, weighed, corner)
    st.subheader("How fast the search got there", anchor=False, help=tip("hypervolume"))
    st.plotly_chart(
        charts_hypervolume.hypervolumes(curves, whole, predicted), key="results/hypervolume"
    )
    value = corner.badness if objective == "loss" else -corner.badness
    words = wording.nats(value) if objective == "loss" else wording.percent(value)
    st.caption(
        f"The area between the measured front and a fixed corner, as a share of the area at the "
        f"end. The corner lies at {charts_front.cost_words(corner.cost, cost)} (as "
        f"{corner.dearest}, the dearest baseline) and {objective} {words} (as {corner.cheapest}, "
        f"the cheapest one); trial 0 is what the baselines alone reach."
    )


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


def _areas(found: Cloud, weighed: tuple[str, str], corner: Corner) -> Floats:
    run_id = found[0].run_id
    last = found.numbers[-1] if len(found) else 0
    return _held(
        f"areas/{run_id}/{weighed}",
        (len(found), float(last), corner, id(found[0].metrics)),
        lambda: charts_hypervolume.areas(found, *weighed, corner),
    )


def _predicted_area(record: RunRecord, weighed: tuple[str, str], corner: Corner) -> float:
    """Return the area of the predicted front; 0 where it is not predicted for these."""
    objective, cost = weighed
    spec = record.search.spec if record.search is not None else record.spec.search
    if objective != "loss":
        return 0.0
    if cost == "weight_bytes":
        foreseen = services.predicted(record, spec)
        costs = foreseen.weight_bytes.astype(float) if foreseen is not None else None
    else:
        by_cost = services.predicted_by_cost(record, spec) if spec.cost == cost else None
        foreseen = by_cost.front if by_cost is not None else None
        costs = by_cost.costs if by_cost is not None else None
    if foreseen is None or costs is None:
        return 0.0
    losses = points.loss_at_16_bit(record) + foreseen.loss_increase
    return _held(
        f"predicted/{record.run_id}/{weighed}",
        (id(foreseen), corner),
        lambda: charts_hypervolume.predicted_area(costs, losses, corner),
    )


def _held(key: str, signature: object, make: Callable[[], T]) -> T:
    """Return what was made under a key, made anew when its signature is another one."""
    kept = _made(str(services.store().home))
    found = kept.get(key)
    if found is None or found[0] != signature:
        found = (signature, make())
        kept[key] = found
    return cast("T", found[1])


@st.cache_resource(show_spinner=False)
def _made(home: str) -> dict[str, tuple[object, object]]:
    return {}

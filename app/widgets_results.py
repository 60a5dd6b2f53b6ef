"""Pieces of the Results page: which runs and plans, the front that takes clicks, and plans edited
by hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from app import (
    charts_front,
    forms_data,
    forms_search,
    points,
    services,
    state,
    tables_plan,
    widgets,
    wording,
)
from app.charts_front import FrontView
from app.glossary import tip
from app.points import Point
from app.widgets import Figure
from qpruner_core.catalog import PRECISIONS
from qpruner_core.domain.footprint import bits_per_weight
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import OBJECTIVES
from qpruner_core.search.knapsack import predict

FRONT = "results/front"
_WITH, _A, _B = "results/with", "results/a", "results/b"
_FIRST_BASELINE = -1


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


def objective_field(record: RunRecord) -> str:
    """Ask what is weighed against memory."""
    return str(
        st.segmented_control(
            "Weigh against memory",
            OBJECTIVES,
            default=record.search.spec.objective if record.search is not None else OBJECTIVES[0],
            required=True,
            format_func=forms_search.OBJECTIVE_WORDS.__getitem__,
            help=tip("objective"),
        )
    )


def plan_fields(found: Sequence[Point], record: RunRecord) -> tuple[Point, Point]:
    """Ask for plans A and B; a click on the front sets A, and the address carries both."""
    able = {point.key: point for point in found if point.plan is not None}
    chosen = f"{record.run_id}:{record.search.chosen}" if record.search is not None else ""
    default_a = chosen if chosen in able else next(iter(able))
    baseline = f"{record.run_id}:{_FIRST_BASELINE}"
    default_b = baseline if baseline in able else next(iter(able))
    left, right = st.columns(2)
    picked = []
    for column, letter, name, key, default in (
        (left, "A", "trial", _A, default_a),
        (right, "B", "other", _B, default_b),
    ):
        asked = state.selection(name)
        state.set_widget(key, asked if asked in able else default)
        column.selectbox(
            f"Plan {letter}",
            list(able),
            format_func=lambda each: f"{able[each].name} · {able[each].run_name}",
            key=key,
            on_change=state.select_widget,
            args=(name, key),
            help=tip("plan"),
        )
        picked.append(able[str(state.widget(key))])
    return picked[0], picked[1]


def front(found: Sequence[Point], record: RunRecord, objective: str, a: Point, b: Point) -> None:
    """Draw the front of all runs; a click makes the point plan A."""
    view = FrontView(
        objective=objective,
        budget_bytes=record.search.budget_bytes if record.search is not None else None,
        chosen=a.key,
        other=b.key,
        zoom=st.toggle("Zoom to the front", value=True, help=tip("zoom")),
    )
    st.plotly_chart(
        charts_front.front(found, view), key=FRONT, on_select=_take_click, selection_mode="points"
    )
    st.caption(
        "Every point is measured. Click one to make it plan A; A is ringed thick, B thin."
        + outside_words(charts_front.n_outside(found, view))
    )


def outside_words(n_points: int) -> str:
    """Return the sentence on points at the edge; empty without any."""
    if not n_points:
        return ""
    if n_points == 1:
        return " 1 point lies far outside and stands at the edge as a triangle."
    return f" {n_points} points lie far outside and stand at the edge as triangles."


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


def _take_click() -> None:
    clicked = state.picked(FRONT)
    if clicked is not None and not clicked.endswith(":None"):
        state.select("trial", clicked)


def plan_editor(record: RunRecord, start: Point, *, busy: bool) -> None:
    """Edit a plan layer by layer, see its predicted effect, and have it measured."""
    measured, layout = record.quantize, record.layout
    if measured is None or layout is None or start.plan is None:
        return
    with st.expander("Edit plan A by hand", expanded=False):
        space = services.space(layout, measured)
        table = tables_plan.to_table(space, start.plan)
        edited = st.data_editor(
            table,
            key=f"results/editor/{start.key}",
            disabled=["layer"],
            column_config={"layer": st.column_config.NumberColumn("Layer", help=tip("layer"))}
            | {
                part: st.column_config.SelectboxColumn(
                    tables_plan.title(part),
                    options=list(space.precisions),
                    required=True,
                    format_func=lambda name: PRECISIONS.entry(str(name)).title,
                    help=tip("precision"),
                )
                for part in table.columns
            },
        )
        plan = tables_plan.to_plan(space, pd.DataFrame(edited))
        _effect(record, plan)
        same = (t for t in points.trials_of(record) if t.metrics and t.plan.key == plan.key)
        known = next(same, None)
        if known is not None and known.metrics is not None:
            st.caption(
                f"This plan has been measured already: {wording.nats(known.metrics.loss)} per "
                f"token at {wording.size(known.metrics.weight_bytes)}."
            )
        if st.button(
            "Measure this plan",
            type="primary",
            disabled=busy or known is not None,
            help=tip("measure"),
            key="results/measure",
        ):
            services.jobs().start_measure(record.run_id, plan)
            st.rerun()


def _effect(record: RunRecord, plan: PrecisionPlan) -> None:
    measured, layout = record.quantize, record.layout
    if measured is None or layout is None:
        return
    space = services.space(layout, measured)
    size = space.bytes(plan)
    figures = [
        Figure(
            label="Weights",
            value=wording.size(size),
            term="weight_bytes",
            origin=wording.ESTIMATED,
        ),
        Figure(
            label="Bits per weight",
            value=f"{bits_per_weight(layout, size):.2f} bits",
            term="bits_per_weight",
            origin=wording.ESTIMATED,
        ),
    ]
    if plan in space:
        increase = predict(space, measured.sensitivities, plan)
        figures.append(
            Figure(
                label="Loss per token",
                value=wording.nats(points.loss_at_16_bit(record) + increase),
                term="loss",
                origin=wording.ESTIMATED,
                change=f"{increase:+.3f} nats/token",
            )
        )
    else:
        names = ", ".join(PRECISIONS.entry(name).title for name in space.precisions)
        st.caption(f"The effect on the loss is only predicted for {names}; measuring answers it.")
    widgets.figures(figures)

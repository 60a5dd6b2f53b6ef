"""Pieces of the Search page: budget, predicted front, live trials, and the best under the
budget.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st

from app import (
    charts_front,
    forms_search,
    points,
    services,
    state,
    tables,
    widgets,
    widgets_results,
    wording,
)
from app.charts_front import FrontView
from app.glossary import tip
from app.widgets import Figure
from qpruner_core.domain.footprint import bits_per_weight, dense_bytes, parse_budget
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import SearchSpec
from qpruner_core.search.knapsack import best_under
from qpruner_core.search.space import SearchSpace


def with_budget(spec: SearchSpec, dense: ModelLayout, layout: ModelLayout) -> SearchSpec:
    """Ask for the budget within what the chosen precisions can reach, as a fraction of the dense
    model.
    """
    reference = dense_bytes(dense)
    space = SearchSpace(layout, spec.precisions, spec.tie, reference)
    largest = space.code_bytes(tuple(len(space.precisions) - 1 for _ in space.units))
    now = parse_budget(spec.memory_budget, reference)
    budget = forms_search.budget_slider(space.smallest_bytes, largest, now, reference)
    if round(budget / reference, 3) == round(now / reference, 3):
        return spec  # as it was written, by which a study is found again
    return replace(spec, memory_budget=f"{budget / reference:.4f}")


def outdated(record: RunRecord, spec: SearchSpec) -> str | None:
    """Return the step whose result does not fit the search that is asked for: its
    sensitivities.
    """
    known = record.quantize
    if known is None:
        return None
    fits = known.tie == spec.tie and set(spec.precisions) <= set(known.precisions)
    return None if fits else "quantize"


def live_front(record: RunRecord, spec: SearchSpec, dense: ModelLayout) -> None:
    """Draw the predicted front and what has been measured so far."""
    now = services.store().read(record.run_id)
    budget = parse_budget(spec.memory_budget, dense_bytes(dense))
    trials = services.trials(now)
    found = points.of_trials(now, trials)
    predicted = services.predicted(now)
    if not found and predicted is None:
        return
    best = points.best_under(found, budget, spec.objective)
    view = FrontView(
        objective=spec.objective,
        budget_bytes=budget,
        chosen=best.key if best is not None else None,
        predicted=predicted,
        loss_16_bit=points.loss_at_16_bit(now),
    )
    st.plotly_chart(charts_front.front(found, view), key="search/front")
    failed = [trial for trial in trials if trial.state == "failed"]
    measured = sum(point.kind == points.PLAN for point in found)
    st.caption(
        f"{measured} trials and {len(found) - measured} baselines measured"
        + (f", {len(failed)} failed." if failed else ".")
        + widgets_results.outside_words(charts_front.n_outside(found, view))
    )
    if predicted is not None and spec.objective == "accuracy":
        st.caption("The predicted front is in nats of loss; weigh loss against memory to see it.")


def best(record: RunRecord, spec: SearchSpec, dense: ModelLayout) -> None:
    """Draw what the budget buys: predicted at once, and measured when there is something
    measured.
    """
    budget = parse_budget(spec.memory_budget, dense_bytes(dense))
    layout, predicted = record.layout, services.predicted(record)
    if layout is None or predicted is None:
        return
    if outdated(record, spec) is not None:
        st.info(
            "These precisions or ties were not measured yet. Starting the search measures them "
            "first."
        )
        return
    foreseen = best_under(predicted, max(budget, int(predicted.weight_bytes[0])))
    base = points.loss_at_16_bit(record)
    st.subheader("Best plan under the budget, predicted", anchor=False)
    widgets.figures(
        [
            Figure(
                label="Weights",
                value=wording.size(foreseen.weight_bytes),
                term="weight_bytes",
                origin=wording.ESTIMATED,
            ),
            Figure(
                label="Bits per weight",
                value=f"{bits_per_weight(layout, foreseen.weight_bytes):.2f} bits",
                term="bits_per_weight",
                origin=wording.ESTIMATED,
            ),
            Figure(
                label="Loss per token",
                value=wording.nats(base + foreseen.loss_increase),
                term="loss",
                origin=wording.ESTIMATED,
                change=f"{foreseen.loss_increase:+.3f} nats/token",
            ),
        ]
    )
    widgets.layer_map(layout, foreseen.plan, "search/predicted_map")
    _best_measured(record, spec, budget)


def _best_measured(record: RunRecord, spec: SearchSpec, budget: int) -> None:
    found = points.of_trials(record, points.trials_of(record))
    top = points.best_under(found, budget, spec.objective)
    if not found:
        return
    st.subheader("Best plan under the budget, measured", anchor=False)
    if top is None or record.layout is None or top.plan is None:
        st.info("Nothing that was measured fits this budget. Raise it, or search again with it.")
        return
    table: pd.DataFrame = tables.measured([top])
    st.dataframe(table, hide_index=True)
    widgets.layer_map(record.layout, top.plan, "search/measured_map")
    if st.button("Open in Results", help=tip("open_results"), icon=":material/scatter_plot:"):
        state.open_page("results", trial=top.key)

"""Pieces of the Search page: what is asked for, and the predicted front with the live trials over
it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import streamlit as st

from app import (
    charts_front,
    forms_search,
    points,
    services,
    tables_signals,
    tables_trials,
    widgets,
    widgets_results,
    widgets_trials,
)
from app.charts_front import FrontView
from app.points import Point
from qpruner_core.domain.footprint import dense_bytes, parse_budget
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.domain.spec import SearchSpec
from qpruner_core.errors import QPrunerError
from qpruner_core.jobs import Job
from qpruner_core.search.space import SearchSpace


def _fields_of(record: RunRecord) -> str:
    """Return what the fields of the form belong to: the run, and what it is asked for. They start
    anew when a job has given the run other settings, as in a copy that was just made.
    """
    asked = hashlib.sha256(repr(record.spec.search).encode()).hexdigest()[:8]
    return f"{record.run_id}/{asked}"


def asked(record: RunRecord, dense: ModelLayout, layout: ModelLayout) -> SearchSpec | None:
    """Ask for the search, the budget first; None where the choices do not go together, which a
    sentence says. What was chosen stays in the fields.
    """
    above = st.container()
    own_ratio = record.spec.pruning.ratio
    try:
        spec = forms_search.search_form(record.spec.search, _fields_of(record), own_ratio)
        with above:
            return _with_budget(record, spec, dense, layout)
    except QPrunerError as error:
        widgets.error_panel(str(error))
        return None


def _with_budget(
    record: RunRecord, spec: SearchSpec, dense: ModelLayout, layout: ModelLayout
) -> SearchSpec:
    """Ask for the budget within what the chosen precisions and ratios can reach, as a fraction of
    the dense model.
    """
    reference = dense_bytes(dense)
    space = _space(record, spec, dense, layout)
    now = parse_budget(spec.memory_budget, reference)
    budget = forms_search.budget_slider(
        space.smallest_bytes, space.largest_bytes, now, reference, _fields_of(record)
    )
    if round(budget / reference, 3) == round(now / reference, 3):
        return spec  # as it was written, by which a study is found again
    return replace(spec, memory_budget=f"{budget / reference:.4f}")


def _space(
    record: RunRecord, spec: SearchSpec, dense: ModelLayout, layout: ModelLayout
) -> SearchSpace:
    """Return the space that is asked for; levels that are not cut yet as the selection has them
    now.
    """
    found = services.predicted(record, spec)
    if found is not None:
        return found.space
    key = f"search/space/{record.run_id}/{spec.precisions}/{spec.tie}/{spec.joint}/{spec.ratios}"
    key += f"/{spec.fixed}"
    return services.once(key, layout, lambda: _new_space(record, spec, dense, layout))


def _new_space(
    record: RunRecord, spec: SearchSpec, dense: ModelLayout, layout: ModelLayout
) -> SearchSpace:
    pruning, scored = record.spec.pruning, record.score is not None
    levels = [
        services.preview(record, dense, replace(pruning, ratio=ratio), scored=scored).layout
        for ratio in spec.ratios
    ]
    return SearchSpace(
        layout, spec.precisions, spec.tie, levels=levels, joint=spec.joint, fixed=spec.fixed
    )


def start(record: RunRecord, spec: SearchSpec | None, *, busy: bool) -> None:
    """Draw the button that starts the search, with the number of its workers."""
    workers = widgets_trials.workers_field(record.run_id)
    wanted = record.spec.search if spec is None else spec
    asked = widgets.with_part(record.spec, search=wanted)
    widgets.start(
        record,
        asked,
        "search",
        "Search",
        redo=outdated(record, wanted),
        busy=busy or spec is None,
        workers=workers,
    )


def outdated(record: RunRecord, spec: SearchSpec) -> str | None:
    """Return the step whose result does not fit the search that is asked for: its
    sensitivities.
    """
    known = record.quantize
    return "quantize" if known is not None and not services.fits(known, spec) else None


def empty(record: RunRecord, spec: SearchSpec, *, busy: bool) -> None:
    """Say what will come where nothing can be predicted yet."""
    if record.quantize is None:
        st.info(
            "The predicted front appears seconds after the sensitivities are measured. "
            + (
                "Measured plans then join it one by one."
                if busy
                else "Start the search: it measures them first, then tries plans on the pruned "
                "model."
            )
        )
    elif outdated(record, spec) is not None:
        st.info(
            "These precisions, ties, ratios or costs were not measured yet. Starting the search "
            "measures them first."
        )


def live(record: RunRecord, spec: SearchSpec, dense: ModelLayout, job: Job | None) -> None:
    """Draw the predicted front, what has been measured so far over it, and how far that is.

    Args:
        record: The run as the page has it; read anew here.
        spec: The search that is asked for.
        dense: The model before pruning.
        job: The run's job under way.
    """
    now = services.store().read(record.run_id)
    trials = services.trials(now)
    _front(now, trials, spec, parse_budget(spec.memory_budget, dense_bytes(dense)))
    told = services.jobs().get(job.job_id) if job is not None else None
    searches = told is not None and now.quantize is not None and "search" in told.steps
    widgets_trials.progress(now, trials, now.spec.search.n_trials, told if searches else None)


def _front(now: RunRecord, trials: tuple[Trial, ...], spec: SearchSpec, budget: int) -> None:
    found = services.measured(now)
    view = _view(now, found, spec, budget)
    if not found and view.predicted is None:
        return
    made = charts_front.front(found, view)
    st.plotly_chart(made, key="search/front")
    standing = tables_trials.standing(trials, spec.n_trials)
    st.caption(
        tables_trials.count_words(standing)
        + widgets_results.outside_words(charts_front.n_outside(found, view))
        + widgets_results.thinned_words(charts_front.n_drawn(made), len(found))
    )
    for sentence in _notes(now, found, view):
        st.caption(sentence)


def _view(now: RunRecord, found: Sequence[Point], spec: SearchSpec, budget: int) -> FrontView:
    best = points.best_under(found, budget, spec.objective)
    by_cost = services.predicted_by_cost(now, spec)
    measured = now.quantize
    return FrontView(
        objective=spec.objective,
        cost=spec.cost,
        budget_bytes=budget,
        chosen=best.key if best is not None else None,
        predicted=by_cost.front if by_cost is not None else services.predicted(now, spec),
        predicted_cost=by_cost.costs if by_cost is not None else None,
        signal=tables_signals.used(measured, spec) if measured is not None else spec.signal,
        loss_16_bit=points.loss_at_16_bit(now),
    )


def _notes(now: RunRecord, found: Sequence[Point], view: FrontView) -> list[str]:
    """Return what the picture leaves out, in sentences."""
    notes = []
    steps = now.spec.search.recover_steps
    if steps:
        notes.append(
            f"Measured losses are after {steps} steps of recovery; the predicted front is of "
            "plans as they are quantised."
        )
    if view.predicted is not None and view.objective == "accuracy":
        notes.append("The predicted front is in nats of loss; weigh loss to see it.")
    if view.cost != "weight_bytes":
        notes.append("The memory budget bounds the weights, which this picture does not show.")
        without = sum(points.across(point, view.cost) is None for point in found)
        if without:
            notes.append(
                f"{without} measured without {charts_front.COST_TITLES[view.cost].lower()} are "
                "left out; searching again measures it."
            )
    return notes

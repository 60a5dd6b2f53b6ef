"""Piece of the Search page: what the budget buys, predicted beside measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import streamlit as st

from app import (
    foresight,
    points,
    services,
    state,
    tables_plan,
    tables_signals,
    widgets,
    wording,
    wording_paired,
)
from app.clouds import Cloud
from app.glossary import tip
from app.points import Point
from app.widgets import Figure
from qpruner_core.domain.footprint import bits_per_weight, dense_bytes, parse_budget
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.signals import predicts
from qpruner_core.domain.spec import SearchSpec
from qpruner_core.search.knapsack import PredictedPoint, best_under, predict
from qpruner_core.search.space import SearchSpace

N_TESTED = 200
"""Plans that the best one is tested against at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """What the budget buys: foreseen, and as far as something was measured."""

    space: SearchSpace
    predicted: PredictedPoint | None
    """None where what is asked for was not measured unit by unit."""
    measured: Point | None
    """The best measured plan within the budget."""
    has_trials: bool
    """Whether anything was measured."""
    near: str = ""
    """How many other plans within the budget are not called different from the best one."""

    @property
    def differing(self) -> frozenset[str]:
        """Linears that the two plans treat differently."""
        if self.predicted is None or self.measured is None or self.measured.plan is None:
            return frozenset()
        plans = [self.predicted.plan, self.measured.plan]
        return tables_plan.differing(self.space.layout, plans)


def panel(record: RunRecord, spec: SearchSpec, dense: ModelLayout) -> None:
    """Draw what the budget buys: predicted at once, and beside it what was measured."""
    if record.quantize is None or record.layout is None:
        return
    best = _best(record, spec, parse_budget(spec.memory_budget, dense_bytes(dense)))
    st.subheader("Best plan under the budget", anchor=False)
    left, right = st.columns(2, gap="medium")
    with left:
        _predicted(record, spec, best)
    with right:
        _measured(record, spec, best)


def _best(record: RunRecord, spec: SearchSpec, budget: int) -> Best:
    found = services.measured(record)
    front = foresight.predicted(record, spec)
    # Trials are of the search as the run has it, whatever is asked for now.
    known = foresight.predicted(record)
    layout = record.layout
    if layout is None:
        raise ValueError("what a budget buys needs the layout of its model")
    spaces = (each.space for each in (known, front) if each is not None)
    top = points.best_under(found, budget, spec.objective)
    return Best(
        space=next(spaces, None)
        or SearchSpace(layout, spec.precisions, spec.tie, fixed=spec.fixed),
        # The slider stands on the smallest plan or above; a hair below it is rounding.
        predicted=best_under(front, max(budget, int(front.weight_bytes[0]))) if front else None,
        measured=top,
        has_trials=bool(found),
        near=_near(found, budget, spec.objective, top),
    )


def _predicted(record: RunRecord, spec: SearchSpec, best: Best) -> None:
    st.markdown("**Predicted**")
    point, measured, base = best.predicted, record.quantize, points.loss_at_16_bit(record)
    front = foresight.predicted(record, spec)
    if point is None or measured is None or front is None:
        st.info("Starting the search measures what the prediction adds up.")
        return
    loss = base + point.loss_increase
    layout = front.space.layout_of(point.plan)
    _figures(point.weight_bytes, loss, base, wording.ESTIMATED)
    widgets.layer_map(layout, point.plan, "search/predicted_map", best.differing)
    by = tables_signals.used(measured, spec)
    words = (
        f" Sensitivities by {tables_signals.SIGNAL_IN_WORDS[by]}, added up on the loss at 16 bit."
    )
    st.caption(
        _bits(layout, point.weight_bytes)
        + words
        + _asked_for(spec, by)
        + _levels(record, point.plan)
    )


def _asked_for(spec: SearchSpec, by: str) -> str:
    """Return why another signal than the one asked for was added up."""
    if spec.signal == by:
        return ""
    if spec.joint != "none":
        return " KL divergence does not tell whether less pruning is for the better."
    return " This run has no KL divergence on record."


def _measured(record: RunRecord, spec: SearchSpec, best: Best) -> None:
    top = best.measured
    if top is None or top.plan is None:
        st.markdown("**Measured**")
        st.info(
            "Nothing that was measured fits this budget. Raise it, or search again with it."
            if best.has_trials
            else "Nothing is measured yet; the search puts its best plan here."
        )
        return
    st.markdown(f"**Measured: {top.name}**")
    layout = best.space.layout_of(top.plan)
    size, loss = top.metrics.weight_bytes, top.metrics.loss
    _figures(size, loss, points.loss_at_16_bit(record), wording.MEASURED)
    widgets.layer_map(layout, top.plan, "search/measured_map", best.differing)
    st.caption(
        _bits(layout, size)
        + _foreseen(record, spec, best.space, top.plan)
        + _difference(best)
        + _accuracy(top)
        + best.near
        + _levels(record, top.plan)
    )
    if record.search is not None and st.button(
        "Open in Results", help=tip("open_results"), icon=":material/scatter_plot:"
    ):
        state.open_page("results", trial=top.key)


def _bits(layout: ModelLayout, size: int) -> str:
    return f"{bits_per_weight(layout, size):.2f} bits per weight."


def _foreseen(record: RunRecord, spec: SearchSpec, space: SearchSpace, plan: PrecisionPlan) -> str:
    """Return what had been predicted for the measured plan itself."""
    measured = record.quantize
    if measured is None or plan not in space or not predicts(measured, spec):
        return ""
    signal = tables_signals.used(measured, spec)
    increase = predict(space, measured.sensitivities, plan, signal=signal)
    return f" Predicted for this plan: {wording.nats(points.loss_at_16_bit(record) + increase)}."


def _difference(best: Best) -> str:
    if best.predicted is None:
        return ""
    n_linears = len(best.differing)
    if not n_linears:
        return " The plan is the predicted one."
    return f" {n_linears} Linears differ from the prediction; they are ringed in both."


def _accuracy(point: Point) -> str:
    if not point.metrics.tasks:
        return ""
    error = 100 * point.metrics.standard_error
    return f" Accuracy {wording.percent(point.metrics.accuracy)} ± {error:.1f} points."


def _near(found: Cloud, budget: int, objective: str, top: Point | None) -> str:
    """Return how many plans within the budget answer no differently than the best one, of a search
    that looks for it; of very many plans the next best.
    """
    if objective != "accuracy" or top is None or not top.metrics.tasks:
        return ""
    within = np.flatnonzero((found.weight_bytes <= budget) & found.has_plan)
    order = np.argsort(found.badness(objective)[within], kind="stable")
    nearest = [found[int(index)] for index in within[order][:N_TESTED]]
    others = [point.metrics for point in nearest if point.key != top.key]
    return wording_paired.near_best(top.metrics, others)


def _levels(record: RunRecord, plan: PrecisionPlan) -> str:
    """Return which pruning ratios a plan of a joint search gives its layers."""
    measured = record.quantize
    if measured is None or not plan.levels or not measured.levels:
        return ""
    ratios = [measured.levels[level].ratio for level in plan.levels]
    if len(set(ratios)) == 1:
        return f" All layers pruned by {wording.percent(ratios[0], 0)}."
    return f" Pruned per layer by {', '.join(wording.percent(ratio, 0) for ratio in ratios)}."


def _figures(size: int, loss: float, base: float, origin: str) -> None:
    widgets.figures(
        [
            Figure(
                label="Weights",
                value=wording.size(size),
                term="weight_bytes",
                origin=origin,
            ),
            Figure(
                label="Loss per token",
                value=wording.nats(loss),
                term="loss",
                origin=origin,
                change=f"{loss - base:+.3f} nats",
            ),
        ]
    )

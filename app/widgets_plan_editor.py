"""Plans edited by hand: a precision per unit, a pruning ratio per layer in a joint search, the
predicted effect while editing, and the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from app import plans, points, services, tables_plan, widgets, wording
from app.glossary import tip
from app.points import Point
from app.widgets import Figure
from qpruner_core.catalog import PRECISIONS
from qpruner_core.domain.footprint import bits_per_weight
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.search.knapsack import predict
from qpruner_core.search.space import SearchSpace


def editor(
    record: RunRecord, start: Point, trials: Sequence[Trial], *, busy: bool, letter: str = "A"
) -> None:
    """Edit a plan, see its predicted effect, and have it measured.

    Args:
        record: The run that measured the plan.
        start: The plan that the editing begins with.
        trials: What is measured already, which is not measured again.
        busy: Whether a job is under way.
        letter: Letter of the plan among those compared.
    """
    space = plans.space_of(record)
    if space is None or start.plan is None:
        return
    with st.expander(f"Edit plan {letter} by hand", expanded=False):
        plan = _table(record, space, start.plan, f"results/editor/{start.key}")
        _effect(record, space, plan, start.plan)
        known = next((t for t in trials if t.metrics is not None and t.plan == plan), None)
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
            widgets.ask(lambda: services.jobs().start_measure(record.run_id, plan))


def _table(record: RunRecord, space: SearchSpace, plan: PrecisionPlan, key: str) -> PrecisionPlan:
    """Draw the table and return the plan that it states now."""
    levels = _global_level(record, space, plan, key)
    table = tables_plan.to_table(space, plan)
    parts = {
        part: st.column_config.SelectboxColumn(
            tables_plan.title(part),
            options=list(space.precisions),
            required=True,
            format_func=lambda name: PRECISIONS.entry(str(name)).title,
            help=tip("precision"),
        )
        for part in table.columns
    }
    columns = {"layer": st.column_config.NumberColumn("Layer", help=tip("layer")), **parts}
    if space.joint == "per-layer":
        ratios = [wording.percent(ratio, 0) for ratio in plans.ratios_of(record)]
        given = plan.levels or (0,) * space.layout.n_layers
        table.insert(0, tables_plan.PRUNED, [ratios[level] for level in given])
        columns[tables_plan.PRUNED] = st.column_config.SelectboxColumn(
            "Pruned", options=ratios, required=True, help=tip("joint_ratio")
        )
    edited = pd.DataFrame(
        st.data_editor(table, key=key, disabled=["layer"], column_config=columns)
    )
    if space.joint == "per-layer":
        levels = [ratios.index(str(words)) for words in edited[tables_plan.PRUNED]]
    return tables_plan.to_plan(space, edited, levels)


def _global_level(
    record: RunRecord, space: SearchSpace, plan: PrecisionPlan, key: str
) -> list[int]:
    """Ask for the one pruning ratio of the model; level of every layer, none without a choice."""
    if space.joint != "global":
        return []
    ratios = plans.ratios_of(record)
    level = st.selectbox(
        "Pruning ratio",
        range(len(ratios)),
        index=plan.levels[0] if plan.levels else 0,
        format_func=lambda index: wording.percent(ratios[index], 0),
        help=tip("joint_ratio"),
        key=f"{key}/ratio",
    )
    return [int(level)] * space.layout.n_layers


def _effect(
    record: RunRecord, space: SearchSpace, plan: PrecisionPlan, before: PrecisionPlan
) -> None:
    """Draw what an edited plan is predicted to cost, and the change from the plan it began as."""
    measured = record.quantize
    if measured is None:
        return
    size, was = space.bytes(plan), space.bytes(before)
    figures = [
        Figure(
            label="Weights",
            value=wording.size(size),
            term="weight_bytes",
            origin=wording.ESTIMATED,
            change=wording.size_change(size, was),
        ),
        Figure(
            label="Bits per weight",
            value=f"{bits_per_weight(space.layout_of(plan), size):.2f} bits",
            term="bits_per_weight",
            origin=wording.ESTIMATED,
        ),
    ]
    if plan in space:
        increase = predict(space, measured.sensitivities, plan)
        change = None
        if before in space:
            start = predict(space, measured.sensitivities, before)
            change = f"{increase - start:+.4f} nats/token"
        figures.append(
            Figure(
                label="Loss per token",
                value=wording.nats(points.loss_at_16_bit(record) + increase),
                term="loss",
                origin=wording.ESTIMATED,
                change=change,
            )
        )
    else:
        names = ", ".join(PRECISIONS.entry(name).title for name in space.precisions)
        st.caption(f"The effect on the loss is only predicted for {names}; measuring answers it.")
    widgets.figures(figures)
    st.caption(
        f"Predicted from the sensitivities of single units; the change is from "
        f"the plan as it was. At 16 bit the loss is {wording.nats(points.loss_at_16_bit(record))}."
    )

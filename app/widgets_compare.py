"""Criteria side by side at one ratio: the button that has them measured, and what was measured."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from app import (
    charts_base,
    charts_pruning,
    forms_pruning,
    services,
    tables_pruning,
    widgets,
    widgets_standing,
    wording,
    wording_pruning,
)
from app.forms_pruning import Asked
from app.glossary import tip
from qpruner_core.domain.record import ComparedPruning, Comparison, RunRecord
from qpruner_core.domain.spec import PruningSpec


def panel(record: RunRecord, asked: Asked | None, *, busy: bool) -> None:
    """Draw the comparison: how to start it, and its outcome once there is one.

    Args:
        record: The run.
        asked: What the form asks for; None where it cannot be done.
        busy: Whether a job of this run is under way.
    """
    st.subheader("Which criterion is best here?", anchor=False)
    widgets_standing.failed_beside(record, "compare")
    scored = record.score is not None
    _start(record, asked, blocked=busy or not scored)
    if not scored:
        st.info("Criteria are compared from their scores. Score the model first.")
    elif record.comparison is None or not record.comparison.rows:
        st.caption(
            "Prunes the model once by every scored criterion at the ratio above and measures what "
            "is left. Nothing is compared yet."
        )
    else:
        _outcome(record.comparison, asked, record.run_id)
        if not busy:  # rows still come, and the best of them is offered first
            _use(record.comparison, asked)


def _start(record: RunRecord, asked: Asked | None, *, blocked: bool) -> None:
    """Draw the button that has the criteria compared."""
    both = st.toggle(
        "Also with bias compensation",
        value=True,
        help=tip("compensation"),
        key="compare/bias",
    )
    pruning = asked.pruning if asked is not None and asked.pruning.ratio > 0.0 else None
    clicked = st.button(
        "Compare criteria at this ratio",
        icon=":material/balance:",
        disabled=blocked or pruning is None,
        help=tip("compare_criteria"),
        key="compare/start",
    )
    if clicked and pruning is not None:
        spec = replace(pruning, compensation="bias" if both else "none")
        widgets.ask(lambda: services.jobs().start_compare(record.run_id, spec))


def _outcome(comparison: Comparison, asked: Asked | None, run_id: str) -> None:
    same = asked is not None and _shared(comparison.spec) == _shared(asked.pruning)
    with st.container(horizontal=True, vertical_alignment="center"):
        widgets.origin_badge(wording.MEASURED)
        st.caption(
            f"At {wording_pruning.asked(comparison.spec)}; on {comparison.dense.device}, dense "
            f"model {wording.nats(comparison.dense.loss)} per token."
            + ("" if same else " The form above asks for something else now.")
        )
    figure = services.once(
        f"compared/{run_id}", comparison, lambda: charts_pruning.compared(comparison)
    )
    st.plotly_chart(figure, key="compare/chart", config=charts_base.PLAIN)
    st.dataframe(
        tables_pruning.compared(comparison),
        hide_index=True,
        height="content",
        key="compare/table",
    )
    for sentence in tables_pruning.too_close(comparison):
        st.caption(sentence)


def _shared(spec: PruningSpec) -> PruningSpec:
    """Return what all rows have in common."""
    return replace(spec, criterion="", compensation="none")


def _use(comparison: Comparison, asked: Asked | None) -> None:
    """Ask which row the form shall take over, the best one first."""
    rows = sorted(comparison.rows, key=lambda row: row.metrics.loss)
    names = {_name(row): row for row in rows}
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Criterion to use", list(names), help=tip("use_criterion"), key="compare/chosen"
    )
    row = names[str(chosen)]
    right.button(
        "Use",
        help=tip("use_criterion"),
        on_click=forms_pruning.use,
        args=(row.criterion, row.compensation),
        key="compare/use",
        width="stretch",
    )
    form = asked.pruning if asked is not None else None
    if form is not None and (form.criterion, form.compensation) == (
        row.criterion,
        row.compensation,
    ):
        st.caption(":green[:material/check:] The form above asks for just this.")


def _name(row: ComparedPruning) -> str:
    return (
        f"{wording_pruning.criterion(row.criterion)}, "
        f"{wording_pruning.COMPENSATED[row.compensation]}"
    )

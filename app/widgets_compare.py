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
    wording,
    wording_pruning,
)
from app.forms_pruning import Asked
from app.glossary import tip
from qpruner_core.domain.record import ComparedPruning, Comparison, RunRecord
from qpruner_core.domain.spec import PruningSpec


def panel(record: RunRecord, asked: Asked, *, busy: bool) -> None:
    """Draw the comparison: how to start it, and its outcome once there is one."""
    st.subheader("Which criterion is best here?", anchor=False)
    widgets.failed_beside(record, "compare")
    scored = record.score is not None
    both = st.toggle(
        "Also with bias compensation",
        value=True,
        help=tip("compensation"),
        key="compare/bias",
    )
    if st.button(
        "Compare criteria at this ratio",
        icon=":material/balance:",
        disabled=busy or not scored or asked.pruning.ratio == 0.0,
        help=tip("compare_criteria"),
        key="compare/start",
    ):
        spec = replace(asked.pruning, compensation="bias" if both else "none")
        widgets.ask(lambda: services.jobs().start_compare(record.run_id, spec))
    if not scored:
        st.info("Criteria are compared from their scores. Score the model first.")
    elif record.comparison is None or not record.comparison.rows:
        st.caption(
            "Prunes the model once by every scored criterion at the ratio above and measures what "
            "is left. Nothing is compared yet."
        )
    else:
        _outcome(record.comparison, asked)
        if not busy:  # rows still come, and the best of them is offered first
            _use(record.comparison)


def _outcome(comparison: Comparison, asked: Asked) -> None:
    same = _shared(comparison.spec) == _shared(asked.pruning)
    with st.container(horizontal=True, vertical_alignment="center"):
        widgets.origin_badge(wording.MEASURED)
        st.caption(
            f"At {wording_pruning.asked(comparison.spec)}; on {comparison.dense.device}, dense "
            f"model {wording.nats(comparison.dense.loss)} per token."
            + ("" if same else " The form above asks for something else now.")
        )
    st.plotly_chart(
        charts_pruning.compared(comparison), key="compare/chart", config=charts_base.PLAIN
    )
    st.dataframe(
        tables_pruning.compared(comparison),
        hide_index=True,
        height="content",
        key="compare/table",
    )


def _shared(spec: PruningSpec) -> PruningSpec:
    """Return what all rows have in common."""
    return replace(spec, criterion="", compensation="none")


def _use(comparison: Comparison) -> None:
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


def _name(row: ComparedPruning) -> str:
    return (
        f"{wording_pruning.criterion(row.criterion)}, "
        f"{wording_pruning.COMPENSATED[row.compensation]}"
    )

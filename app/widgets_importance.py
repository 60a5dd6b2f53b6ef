"""Pieces of the Importance page: what is shown, which cell is chosen, and what lies behind it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import streamlit as st

from app import (
    charts_base,
    charts_importance,
    services,
    state,
    tables_importance,
    tables_plan,
    units,
    wording_pruning,
)
from app.glossary import tip
from app.tables_importance import Row
from qpruner_core.domain.layout import KINDS, GroupLayout
from qpruner_core.domain.record import ImportanceOutcome, RunRecord

HEATMAP = "importance/heatmap"
_ROW, _LAYER = "importance/row", "importance/layer"


def criteria_field(known: Sequence[str]) -> list[str]:
    """Ask which criteria the heatmap shows."""
    return list(
        st.pills(
            "Criteria shown",
            known,
            selection_mode="multi",
            default=known,
            format_func=wording_pruning.criterion,
            help=tip("criterion"),
        )
    )


def cell_fields(rows: Sequence[Row], n_layers: int) -> tuple[str, int]:
    """Ask for row and layer; the address carries both, and a click on the heatmap sets them."""
    titles = {row.key: row.title for row in rows}
    row, layer = state.selection("row"), state.selection("layer")
    state.set_widget(_ROW, row if row in titles else next(iter(titles)))
    number = int(layer) if layer is not None and layer.isdecimal() else 0
    state.set_widget(_LAYER, min(number, n_layers - 1))
    left, right = st.columns([3, 1])
    left.selectbox(
        "Row",
        list(titles),
        format_func=titles.__getitem__,
        key=_ROW,
        on_change=_take_fields,
        help=tip("cell"),
    )
    right.number_input(
        "Layer", 0, n_layers - 1, key=_LAYER, on_change=_take_fields, help=tip("layer"), step=1
    )
    return str(state.widget(_ROW)), int(str(state.widget(_LAYER)))


def _take_fields() -> None:
    state.select("row", state.widget(_ROW))
    state.select("layer", state.widget(_LAYER))


def take_click() -> None:
    """Write the clicked cell into the address."""
    clicked = state.picked(HEATMAP)
    if clicked is not None:
        row, _, layer = clicked.rpartition("@")
        state.select("row", row)
        state.select("layer", layer)


def units_panel(record: RunRecord, key: str, layer: int) -> None:
    """Draw the scores of the units behind a cell; of one expert where a layer has several."""
    criterion, _, module = key.partition("/")
    kinds = tables_importance.MODULE_KINDS.get(module, ())
    if not kinds:
        st.subheader(f"Layer {layer}", anchor=False)
        st.info("This row scores whole layers. Choose a row of a module to see its units.")
        return
    layout = record.load.layout if record.load is not None else None
    groups = [
        group
        for group in (layout.groups if layout is not None else ())
        if group.layer == layer and group.kind in kinds
    ]
    title = wording_pruning.criterion(criterion)
    words = KINDS[groups[0].kind if groups else kinds[0]]
    st.subheader(f"Layer {layer}: {words} by {title}", anchor=False)
    scores = services.unit_scores(record, criterion)
    group = _group_field(groups)
    if group is None or scores is None or group.name not in scores:
        st.info("The scores of these units are not kept. Score again to see them.")
        return
    st.plotly_chart(
        charts_importance.units(scores[group.name], _kept(record, group), units.one(group.kind)),
        key="importance/units",
        config=charts_base.PLAIN,
    )
    st.caption(
        f"{len(scores[group.name]):,} units, scores measured on "
        f"{record.score.device if record.score else ''}."
    )


def _group_field(groups: Sequence[GroupLayout]) -> GroupLayout | None:
    """Ask for the expert where the units of a layer lie in several."""
    if len(groups) < 2:
        return next(iter(groups), None)
    number = st.selectbox(
        "Expert",
        range(len(groups)),
        format_func=lambda place: f"expert {groups[place].name.rpartition('.')[2]}",
        help=tip("expert"),
        key="importance/expert",
    )
    return groups[int(number)]


def _kept(record: RunRecord, group: GroupLayout) -> Sequence[int] | None:
    """Return the units that stayed; None before pruning, and where all of them did."""
    if record.prune is None:
        return None
    plan = record.prune.plan
    return () if group.layer in plan.dropped_layers else plan.kept.get(group.name)


def agreement_panel(outcome: ImportanceOutcome, rows: Sequence[Row]) -> None:
    """Draw how alike criteria rank units, kind by kind, and how alike rows rank layers."""
    tables = tables_importance.unit_agreement(outcome.agreement)
    if tables:
        st.caption(tip("unit_agreement"))
        for column, (kind, table) in zip(
            cycle(st.columns(min(2, len(tables)))), tables.items(), strict=False
        ):
            with column:
                st.markdown(f"**{wording_pruning.kind(kind)}**")
                st.plotly_chart(
                    charts_importance.agreement(table),
                    key=f"importance/agreement/{kind}",
                    config=charts_base.PLAIN,
                )
                st.caption(tables_importance.agreement_words(outcome.agreement, kind))
    st.markdown("**Order of the layers**")
    st.caption(tip("rank_agreement"))
    if len(rows) < 2:
        st.info("Show at least two rows to compare their order of layers.")
        return
    st.plotly_chart(
        charts_importance.agreement(tables_importance.rank_agreement(rows)),
        key="importance/agreement",
        config=charts_base.PLAIN,
    )


def sensitivity_panel(record: RunRecord, layer: int) -> None:
    """Draw what low precision costs in a layer, once the search has measured it."""
    st.subheader(f"Layer {layer}: sensitivity per precision", anchor=False)
    measured = record.quantize
    cells = (
        [c for c in measured.sensitivities if tables_plan.layer_of(c.unit) == layer]
        if measured
        else []
    )
    if measured is None or not cells:
        st.info(
            "Sensitivities are measured by the search, on the pruned model. Start it on the "
            "Search page."
        )
        return
    labels = {c.unit: tables_plan.title(tables_plan.part_of(c.unit)) for c in cells}
    st.plotly_chart(
        charts_importance.sensitivities(cells, labels),
        key="importance/sensitivity",
        config=charts_base.PLAIN,
    )
    st.caption(
        f"Measured on {measured.device}; loss with only this unit at the precision, minus the "
        "loss at 16 bit."
    )

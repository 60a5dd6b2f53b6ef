"""Pieces of the Importance page: what is shown, which cell is chosen, and what lies behind it."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import charts_base, charts_importance, services, state, tables_plan
from app.glossary import tip
from app.tables_importance import Row
from qpruner_core.catalog import CRITERIA
from qpruner_core.domain.record import RunRecord

HEATMAP = "importance/heatmap"
_ROW, _LAYER = "importance/row", "importance/layer"
_KINDS = {"attention": ("kv_heads", "KV head"), "mlp": ("mlp_channels", "MLP channel")}


def criteria_field(known: Sequence[str]) -> list[str]:
    """Ask which criteria the heatmap shows."""
    return list(
        st.pills(
            "Criteria shown",
            known,
            selection_mode="multi",
            default=known,
            format_func=lambda name: CRITERIA.entry(name).title,
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
    """Draw the scores of the units behind a cell."""
    criterion, _, module = key.partition("/")
    if module not in _KINDS:
        st.subheader(f"Layer {layer}", anchor=False)
        st.info("This row scores whole layers. Choose a row of attention or MLP to see its units.")
        return
    kind, word = _KINDS[module]
    st.subheader(f"Layer {layer}: {word}s by {CRITERIA.entry(criterion).title}", anchor=False)
    layout = record.load.layout if record.load is not None else None
    group = (
        next((g for g in layout.groups if g.layer == layer and g.kind == kind), None)
        if layout
        else None
    )
    scores = services.unit_scores(record, criterion)
    if group is None or scores is None or group.name not in scores:
        st.info("The scores of these units are not kept. Score again to see them.")
        return
    kept = record.prune.plan.kept.get(group.name) if record.prune is not None else None
    st.plotly_chart(
        charts_importance.units(scores[group.name], kept, word),
        key="importance/units",
        config=charts_base.PLAIN,
    )
    st.caption(
        f"{len(scores[group.name])} units, scores measured on "
        f"{record.score.device if record.score else ''}."
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
    labels = {
        c.unit: c.unit.split(".", 2)[2] if c.unit.count(".") > 1 else "whole layer" for c in cells
    }
    st.plotly_chart(
        charts_importance.sensitivities(cells, labels),
        key="importance/sensitivity",
        config=charts_base.PLAIN,
    )
    st.caption(
        f"Measured on {measured.device}; loss with only this unit at the precision, minus the "
        "loss at 16 bit."
    )

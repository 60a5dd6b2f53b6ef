"""Models larger than memory: pruned and written layer by layer, without being loaded whole."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from app import (
    downloads,
    memory,
    services,
    widgets,
    widgets_export,
    widgets_standing,
    wording,
    wording_pruning,
)
from app.forms_pruning import Asked
from app.glossary import tip
from app.memory import Shortage
from app.widgets import Figure
from qpruner_core.catalog import PRECISIONS
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import ExportSpec, RunSpec, SearchSpec

MIXED = "mixed"
LIBRARIES = "the libraries take some hundreds of megabytes beside it"
LEAST_BUDGET, MOST_BUDGET = 20, 100
"""Ends of the budget slider; percent of the dense model."""


def panel(record: RunRecord, layout: ModelLayout, asked: Asked | None, *, busy: bool) -> None:
    """Draw why and how a model is compressed without being loaded whole; open where one does not
    fit its worker.

    Args:
        record: The run.
        layout: Its model before pruning.
        asked: What the form asks for; None where it cannot be done, which stops the start alone.
        busy: Whether a job of this run is under way.
    """
    pruning = record.spec.pruning if asked is None else asked.pruning
    lacks = memory.shortage(layout, services.jobs().workers())
    widgets_standing.failed_beside(record, "compress")
    opened = lacks is not None or record.compressed is not None
    with st.expander("Larger than memory", expanded=opened):
        _why(layout, lacks)
        criterion = _criterion(pruning.criterion)
        # A folder that was named for an export is not to be written twice.
        search, export = _precision(record.spec.search, replace(record.spec.export, out=None))
        spec = widgets.with_part(
            record.spec,
            importance=record.spec.importance if asked is None else asked.importance,
            # Layer by layer there is one round: nothing is scored anew.
            pruning=replace(pruning, criterion=criterion, iterations=1),
            search=search,
            export=export,
        )
        if st.button(
            "Prune and write layer by layer",
            type="primary" if lacks is not None else "secondary",
            icon=":material/layers:",
            disabled=busy or asked is None,
            help=tip("compress"),
            key="compress/start",
        ):
            _start(record, spec)
        _done(record)


def _start(record: RunRecord, spec: RunSpec) -> None:
    widgets.ask(lambda: services.jobs().start_compress(record.run_id, spec))


def _why(layout: ModelLayout, lacks: Shortage | None) -> None:
    layer = wording.size(memory.largest_layer_bytes(layout))
    if lacks is None:
        st.caption(
            "For models that do not fit the worker's memory: one decoder layer is read, pruned, "
            f"packed and written at a time. The largest has {layer} at 16 bit (estimated); "
            f"{LIBRARIES}."
        )
        return
    st.warning(
        f"This model takes {wording.size(lacks.needed_bytes)} in memory (estimated), more than "
        f"the {wording.size(lacks.memory_bytes)} of the worker on {lacks.device} leave room for; "
        f"layer by layer it is one layer at a time, the largest {layer} at 16 bit (estimated); "
        f"{LIBRARIES}."
    )


def _criterion(wanted: str) -> str:
    """Ask for a criterion that streams; those that do not are shown with the reason."""
    entries = wording_pruning.unit_criteria()
    fit = {entry.name: entry for entry in entries if wording_pruning.streams(entry)}
    names = list(fit)
    suited = next((n for n in (wanted, "wanda", "magnitude") if n in fit), names[0])
    left, right = st.columns(2)
    chosen = left.radio(
        "Criterion of the layer-by-layer pass",
        names,
        names.index(suited),
        format_func=lambda name: fit[name].title,
        captions=[wording_pruning.needs(fit[name]) for name in names],
        help=tip("streaming_criterion"),
        key="compress/criterion",
    )
    rest = [entry for entry in entries if entry.name not in fit]
    if rest:
        right.radio(
            "Not without the whole model",
            [entry.title for entry in rest],
            None,
            captions=[wording_pruning.needs(entry) for entry in rest],
            disabled=True,
            help=tip("streaming_criterion"),
            key="compress/others",
        )
    return str(chosen)


def _precision(search: SearchSpec, export: ExportSpec) -> tuple[SearchSpec, ExportSpec]:
    """Ask how the weights are written: all at one precision, or mixed under a budget."""
    # The budget first, as on the command line.
    names = [MIXED, *PRECISIONS.names()]
    chosen = str(
        st.selectbox(
            "Write the weights as",
            names,
            format_func=lambda name: (
                "Mixed, under a budget"
                if name == MIXED
                else f"{PRECISIONS.entry(name).title} everywhere"
            ),
            help=tip("streaming_precision"),
            key="compress/precision",
        )
    )
    if chosen != MIXED:
        plain = PRECISIONS.entry(chosen).facts["bits"] == 16
        written = replace(export, format="hf_16bit" if plain else "hf_mixed")
        return replace(search, precisions=(chosen,), memory_budget="1.0"), written
    percent = st.slider(
        "Budget, % of the dense model",
        LEAST_BUDGET,
        MOST_BUDGET,
        45,
        help=tip("memory_budget"),
        key="compress/budget",
    )
    budget = f"{percent / 100:.2f}"
    return replace(search, memory_budget=budget), replace(export, format="hf_mixed")


def _done(record: RunRecord) -> None:
    """Draw what the newest pass has written."""
    found = record.compressed
    if found is None:
        return
    peak = found.peak_memory_bytes
    st.subheader("Written layer by layer", anchor=False)
    widgets.figures(
        [
            Figure(
                label="On disk",
                value=wording.size(found.size_bytes),
                term="disk_bytes",
                origin=wording.MEASURED,
            ),
            Figure(
                label="Parameters",
                value=wording.count(found.parameters_after),
                term="parameters",
                change=wording.percent_change(found.parameters_after, found.parameters_before),
                before=wording.count(found.parameters_before),
            ),
            Figure(
                label="Peak memory",
                value="not counted" if peak is None else wording.size(peak),
                term="peak_memory",
                origin="" if peak is None else wording.MEASURED,
            ),
        ]
    )
    spec = found.spec.pruning
    st.caption(
        f"At {wording_pruning.asked(spec)}, by {wording_pruning.criterion(spec.criterion)}, in "
        f"{wording.seconds(sum(found.seconds.values()))} on {found.device}."
    )
    for sentence in found.warnings:
        st.warning(sentence)
    widgets_export.download(record, downloads.LAYER_BY_LAYER, found)

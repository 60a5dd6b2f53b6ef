"""Pieces of the Search page: what was measured of every layer before plans are tried."""

from __future__ import annotations

import streamlit as st

from app import charts_base, charts_signals, services, tables_signals, wording_pruning
from app.charts_signals import Information
from app.glossary import tip
from qpruner_core.domain.record import RunRecord


def panel(record: RunRecord, signal: str) -> None:
    """Draw mutual information and sensitivities of every layer, with the sentence that they bear.

    Args:
        record: The run.
        signal: As the search is asked for; shown first where it was measured.
    """
    measured, layout = record.quantize, record.layout
    if measured is None or layout is None:
        return
    st.subheader("Signals per layer", anchor=False)
    known = tables_signals.signals(measured)
    shown = _signal_field(known, signal)
    rows = services.once(
        f"search/signals/{record.run_id}/{shown}",
        measured,
        lambda: tables_signals.rows(measured, shown),
    )
    st.plotly_chart(
        charts_signals.signals(_information(record), rows, shown, layout.n_layers),
        key="search/signals",
        config=charts_base.PLAIN,
    )
    st.caption(_words(record, shown))


def _signal_field(known: tuple[str, ...], asked: str) -> str:
    """Ask which sensitivities the picture shows; no question where there is one kind."""
    if len(known) < 2:
        st.caption(
            "This run was measured before KL divergence was: its sensitivities are losses alone. "
            "Search in a copy with another tie or precision to measure both."
        )
        return known[0] if known else asked
    return str(
        st.segmented_control(
            "Sensitivity by",
            known,
            default=asked,
            required=True,
            format_func=tables_signals.SIGNAL_WORDS.__getitem__,
            help=tip("signal"),
            key=f"search/signal_shown/{asked}",
        )
    )


def _information(record: RunRecord) -> Information:
    name = record.spec.search.information
    is_information = name.startswith("mutual_information")
    return Information(
        title=wording_pruning.criterion(name),
        axis="I(X; Y), nats" if is_information else "signal",
        values=record.quantize.mutual_information if record.quantize is not None else (),
    )


def _words(record: RunRecord, signal: str) -> str:
    measured = record.quantize
    if measured is None:
        return ""
    sentences = [
        f"Measured on {measured.device}. Bars: "
        f"{wording_pruning.criterion(record.spec.search.information)}, by which QPruner-2 spends "
        "its budget. Cells: what a part alone costs at a precision.",
        tables_signals.hardest_words(measured, signal),
        tables_signals.stability_words(measured.information_stability),
    ]
    return " ".join(sentence for sentence in sentences if sentence)

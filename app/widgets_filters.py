"""Filters of the Results page: what points must hold to stay on the picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import streamlit as st

from app import state, wording
from app.clouds import Cloud, Floats, Mask
from app.glossary import tip
from qpruner_core.domain.record import RunRecord

N_STEPS = 40


def filtered(found: Cloud, records: list[RunRecord]) -> Cloud:
    """Ask for the bytes, the latency and the runs that are shown; points outside are left out, and
    how many is said.
    """
    kept = np.ones(len(found), dtype=np.bool_)
    columns = st.columns(3, gap="medium")
    with columns[0]:
        kept &= _range("Weights", found.weight_bytes, wording.size, tip("filter_bytes"))
    with columns[1]:
        kept &= _range(
            "Per generated token",
            found.latency,
            wording.milliseconds,
            tip("filter_latency"),
        )
    with columns[2]:
        kept &= _runs(found, records)
    shown = found.where(kept)
    hidden = len(found) - len(shown)
    if hidden:
        st.caption(
            f"{len(shown):,} of {len(found):,} points are shown, {hidden:,} lie outside the "
            f"filters. The front is that of the points shown."
        )
    return shown


def _range(label: str, values: Floats, words: Callable[[float], str], help_text: str) -> Mask:
    """Ask for a range of measured values. Points without a value stay while all of it is asked
    for.
    """
    known = values[~np.isnan(values)]
    steps = np.unique(np.linspace(known.min(), known.max(), N_STEPS + 1)) if len(known) else known
    if len(steps) < 2:
        if not len(known):
            st.caption("No latency was measured, so there is none to filter by.")
        return np.ones(len(values), dtype=np.bool_)
    options = steps.tolist()
    low, high = st.select_slider(
        label,
        options,
        value=(options[0], options[-1]),
        format_func=words,
        help=help_text,
        key=f"results/filter/{label}",
    )
    if (low, high) == (options[0], options[-1]):
        return np.ones(len(values), dtype=np.bool_)
    inside: Mask = (values >= low) & (values <= high)
    return inside


def _runs(found: Cloud, records: list[RunRecord]) -> Mask:
    if len(records) < 2:
        return np.ones(len(found), dtype=np.bool_)
    names = {record.run_id: state.run_name(record) for record in records}
    shown = st.pills(
        "Shown runs",
        list(names),
        selection_mode="multi",
        default=list(names),
        format_func=lambda key: names.get(key, key),
        help=tip("filter_runs"),
        key="results/filter_runs",
        wrap=True,
    )
    return np.array([point.run_id in shown for point in found], dtype=np.bool_)

"""Widgets in, domain values out, for what search and export ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import streamlit as st

from app import forms_search_more, state, wording
from app.forms import option_fields
from app.glossary import tip
from qpruner_core.catalog import EXPORTERS, PRECISIONS, STRATEGIES
from qpruner_core.domain.spec import ExportSpec, SearchSpec

OBJECTIVE_WORDS = forms_search_more.OBJECTIVE_WORDS


def budget_slider(
    smallest_bytes: int, largest_bytes: int, budget_bytes: int, dense_bytes: int, owner: str
) -> int:
    """Ask for the memory budget between the smallest and the largest plan; returns bytes.

    A budget that no plan reaches is answered with the least possible one.
    """
    low = round(100 * smallest_bytes / dense_bytes + 0.05, 1)
    high = max(round(100 * largest_bytes / dense_bytes, 1), low + 0.1)
    kept = state.remembered(f"budget/{owner}")  # the field starts anew when its ends move
    at = kept if isinstance(kept, float) else 100 * budget_bytes / dense_bytes
    percent = st.slider(
        "Memory budget, % of the dense model",
        min_value=low,
        max_value=high,
        value=min(max(round(at, 1), low), high),
        step=0.1,
        format="%.1f %%",
        help=tip("memory_budget"),
        key=f"search/budget/{owner}",
    )
    if percent != min(max(round(at, 1), low), high):
        state.remember(f"budget/{owner}", float(percent))
    chosen = int(percent / 100 * dense_bytes)
    st.caption(
        f"{wording.size(chosen)} of {wording.size(dense_bytes)}; the smallest plan of this search "
        f"needs {wording.size(smallest_bytes)} (estimated)."
    )
    if budget_bytes < smallest_bytes and not isinstance(kept, float):
        st.warning(
            f"This run was asked for {wording.size(budget_bytes)}, which no plan of this search "
            f"reaches: the least possible is {wording.size(smallest_bytes)}. Prune more or allow "
            "a smaller precision to go below it."
        )
    return chosen


def search_form(spec: SearchSpec, owner: str, own_ratio: float) -> SearchSpec:
    """Ask for precisions, trials and strategy, and for all else in an expander.

    Args:
        spec: As the run is asked for now.
        owner: What the fields belong to: the run and what it is asked for; they keep what is
            typed as long as that stays.
        own_ratio: Pruning ratio of the run; in [0, 1).

    Raises:
        BadInputError: What was chosen does not go together; the sentence says why.
    """
    key = f"search/{owner}"
    precisions = st.pills(
        "Precisions",
        PRECISIONS.names(),
        selection_mode="multi",
        default=list(spec.precisions),
        format_func=lambda name: PRECISIONS.entry(name).title,
        help=tip("precision"),
        wrap=True,
        key=f"{key}/precisions",
    )
    trials = st.number_input(
        "Trials", 1, 10_000, spec.n_trials, help=tip("trials"), key=f"{key}/trials"
    )
    names = STRATEGIES.names()
    strategy = str(
        st.selectbox(
            "Strategy",
            names,
            names.index(spec.strategy),
            format_func=wording.strategy,
            help=tip("strategy"),
            key=f"{key}/strategy",
        )
    )
    st.caption(STRATEGIES.entry(strategy).summary)
    with st.expander("More settings"):
        more = forms_search_more.fields(spec, key, own_ratio)
        seed = st.number_input(
            "Seed", 0, 2**31 - 1, spec.seed, help=tip("seed"), key=f"{key}/seed"
        )
        given = spec.options if strategy == spec.strategy else {}
        options = option_fields(STRATEGIES.entry(strategy), given, key)
    asked = replace(
        spec,
        **more,
        precisions=tuple(name for name in PRECISIONS.names() if name in precisions),
        strategy=strategy,
        n_trials=int(trials),
        seed=int(seed),
        options=options,
    )
    return _in_the_words_of(spec, asked)


def _in_the_words_of(spec: SearchSpec, asked: SearchSpec) -> SearchSpec:
    """Return what is asked, written as it was before where it means the same: a study is found
    again by what was written.
    """
    if set(asked.precisions) == set(spec.precisions):
        asked = replace(asked, precisions=spec.precisions)
    if asked.strategy == spec.strategy:
        before = STRATEGIES.options(spec.strategy, spec.options)
        if STRATEGIES.options(spec.strategy, asked.options) == before:
            asked = replace(asked, options=spec.options)
    return asked


def trial_field(label: str, names: Mapping[int, str], chosen: int, term: str, key: str) -> int:
    """Ask which measured plan; returns its number."""
    numbers = list(names)
    index = numbers.index(chosen) if chosen in names else 0
    picked = st.selectbox(
        label, numbers, index, format_func=names.__getitem__, help=tip(term), key=key
    )
    return int(picked)


def plan_to_begin_with(
    names: Mapping[int, str], address: str | None, others: Sequence[int | None]
) -> int:
    """Return the number of the plan that a choice begins with: that of the address, else the
    first of the others that is measured.
    """
    linked = int(address) if address and address.removeprefix("-").isdecimal() else None
    measured = (number for number in (linked, *others) if number in names)
    return next((number for number in measured if number is not None), next(iter(names)))


def export_form(
    spec: ExportSpec, names: Mapping[int, str], chosen: int, adapted: int | None
) -> ExportSpec:
    """Ask for plan, format and what becomes of the adapter; it begins with the plan that the
    address names, else with that which was recovered.

    Args:
        spec: As the run is asked for now.
        names: Number of a measured plan -> what it is called.
        chosen: Number of the run's chosen plan.
        adapted: Number of the plan that recovery trained an adapter on; None: there is none.
    """
    told = {
        number: f"{name}, with adapter" if number == adapted else name
        for number, name in names.items()
    }
    begin = plan_to_begin_with(names, state.selection("plan"), (adapted, spec.trial, chosen))
    trial = trial_field("Plan to write", told, begin, "plan", "export/trial")
    formats: Sequence[str] = EXPORTERS.names()
    export_format = st.selectbox(
        "Format",
        formats,
        index=formats.index(spec.format),
        format_func=lambda name: EXPORTERS.entry(name).title,
        help=tip("export_format"),
    )
    st.caption(EXPORTERS.entry(str(export_format)).summary)
    asked = replace(spec, trial=trial, format=str(export_format), out=None)
    if trial != adapted:
        return replace(asked, merge_adapter=False)
    return _adapter_fields(asked)


def _adapter_fields(spec: ExportSpec) -> ExportSpec:
    """Ask what becomes of the adapter of the plan that is written."""
    merged = st.toggle(
        "Merge the adapter into the weights",
        spec.merge_adapter,
        help=tip("merge_adapter"),
        key="export/merge",
    )
    if not merged:
        included = st.toggle(
            "Include the adapter",
            spec.include_adapter,
            help=tip("adapter"),
            key="export/include",
        )
        return replace(spec, merge_adapter=False, include_adapter=included)
    percent = st.number_input(
        "Allowed change of the logits, %",
        0.01,
        100.0,
        round(100 * spec.merge_tolerance, 2),
        help=tip("merge_tolerance"),
        key="export/tolerance",
    )
    return replace(spec, merge_adapter=True, merge_tolerance=percent / 100)

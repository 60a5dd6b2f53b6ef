"""Up to four plans side by side: which ones, their layer maps with the differences ringed, and
their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import streamlit as st

from app import (
    charts_base,
    charts_plan,
    front_traces,
    plans,
    sequences,
    state,
    tables,
    tables_plan,
    widgets,
    wording,
    wording_paired,
)
from app.clouds import Cloud
from app.glossary import tip
from app.points import BASELINE, Point
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.record import RunRecord

LETTERS = "ABCD"
FRONT = "results/front"
N_LISTED = 300
"""Plans that a list offers; with more of them it holds those near the front and the baselines."""
_A, _OTHERS = "results/a", "results/b"
_FIRST_BASELINE = -1


def plan_fields(found: Cloud, record: RunRecord) -> dict[str, Point]:
    """Ask for plan A and up to three others; returns letter -> plan. Picks on the front set them,
    and the address carries them.
    """
    chosen = f"{record.run_id}:{record.search.chosen}" if record.search is not None else ""
    first = found[int(np.flatnonzero(found.has_plan)[0])].key
    a = _known(found, [state.selection("trial"), chosen, first])[0]
    asked = state.selection("other")
    others = _known(found, asked.split(",")) if asked is not None else []
    if asked is None:
        others = _known(found, [f"{record.run_id}:{_FIRST_BASELINE}"])
    others = [key for key in others if key != a][: len(LETTERS) - 1]
    names = _listed(found, [a, *others])
    _ask(names, a, others)
    picked = [found.find(key) for key in (a, *others)]
    return dict(zip(LETTERS, [point for point in picked if point is not None], strict=False))


def take_pick(found: Cloud, objective: str, cost: str) -> None:
    """Take what was clicked or selected on the front: one point becomes plan A, several are
    compared. For use as the picture's callback.
    """
    sent = state.all_picked(FRONT)
    keys = [front_traces.key_of(each, found.run_ids) for each in sent]
    known = _known(found, keys)
    if len(known) == 1:
        _make_a(known[0], str(state.widget(_A)))
    elif known:
        best = nearest_to_front(found, known, objective, cost)
        state.select("trial", best[0])
        state.select("other", ",".join(best[1:]))
    state.remember("results/selected", len(known))


def nearest_to_front(found: Cloud, keys: Sequence[str], objective: str, cost: str) -> list[str]:
    """Return at most four of the plans, by ascending cost: those that no other of them beats,
    spread evenly where they are more, then the best of the rest.
    """
    indices = [index for index in map(found.position, keys) if index is not None]
    mask = np.zeros(len(found), dtype=np.bool_)
    mask[indices] = True
    mine = found.where(mask)
    best = mine.front(objective, cost)
    if len(best) > len(LETTERS):
        spread = np.unique(np.linspace(0, len(best) - 1, len(LETTERS)).round().astype(int))
        best = [best[i] for i in spread]
    order = np.argsort(mine.badness(objective), kind="stable")
    rest = (int(i) for i in order if int(i) not in set(best))
    picked = [*best, *islice(rest, len(LETTERS) - len(best))]
    return [mine[i].key for i in sorted(picked, key=lambda i: mine.cost(cost)[i])]


def selected_words() -> str:
    """Return the sentence on a selection of more plans than are compared; empty otherwise."""
    n_selected = state.remembered("results/selected")
    if not isinstance(n_selected, int) or n_selected <= len(LETTERS):
        return ""
    return (
        f" Of the {n_selected:,} selected plans the {len(LETTERS)} nearest to their front are "
        f"compared."
    )


def maps(compared: Mapping[str, Point], owners: Mapping[str, RunRecord]) -> None:
    """Draw the layer maps two by two; what differs from plan A is ringed, in A what differs from
    any other.
    """
    columns = []
    for position, (letter, point) in enumerate(compared.items()):
        record = owners[point.run_id]
        if position % 2 == 0:  # rows of two, so that a narrow screen keeps the letters in order
            columns = st.columns(2 if len(compared) > 1 else 1, gap="large")
        if point.plan is None or (layout := plans.layout_of(record, point.plan)) is None:
            continue
        with columns[position % len(columns)]:
            rest = compared.values() if letter == "A" else [compared["A"]]
            differs = frozenset[str]().union(
                *(
                    tables_plan.differing(layout, [point.plan, other.plan])
                    for other in rest
                    if other.plan is not None
                )
            )
            st.markdown(f"**{letter} · {point.name}** · {point.run_name}")
            # Where everything differs, rings would only hide the colours that say so.
            ringed = differs if len(differs) < len(layout.linears) else ()
            made = charts_plan.layer_map(
                layout, point.plan, ringed, plans.layer_ratios(record, point.plan)
            )
            st.plotly_chart(made, key=f"results/map/{letter}", config=charts_base.PLAIN)
            beside = {"A": "plan B" if len(compared) == 2 else "any other plan"}
            what = beside.get(letter, "plan A")
            st.caption(difference_words(what, len(differs), len(layout.linears)))


def numbers(compared: Mapping[str, Point]) -> None:
    """Draw the measured numbers side by side, and how sure the differences are."""
    metrics = {letter: point.metrics for letter, point in compared.items()}
    widgets.origin_badge(wording.MEASURED)
    st.dataframe(tables.compare(metrics), height="content")
    if len(metrics) < 2:
        return
    # Of runs that score other items, answers are not paired, whatever their tasks are called.
    alike = sequences.same_items(compared)
    pairable = {
        letter: each if letter in alike else replace(each, tasks={})
        for letter, each in metrics.items()
    }
    _answers(metrics, alike)
    _two_by_two(pairable, sequences.of_points(compared))


def _answers(metrics: Mapping[str, Metrics], alike: frozenset[str]) -> None:
    """Say of every plan whether it answers otherwise than plan A."""
    scored = {letter for letter, each in metrics.items() if each.tasks}
    if not scored:
        return
    st.markdown("**Against plan A, on the same items**", help=tip("paired_test"))
    told = [
        wording_paired.against(letter, each, metrics["A"])
        if letter in alike
        else wording_paired.not_of_the_same_items(letter)
        for letter, each in metrics.items()
        if letter != "A"
    ]
    st.markdown("\n".join(f"- {sentence}" for sentence in told))


def _two_by_two(metrics: Mapping[str, Metrics], losses: Mapping[str, Sequence[float]]) -> None:
    """Draw how every two plans differ."""
    found = tables.answer_differences(metrics, losses)
    if not len(found):
        st.caption(
            "How sure the differences are shows where losses and answers item by item were "
            "kept; these plans were measured without them."
        )
        return
    st.markdown("**Two by two, on the same text** (paired)", help=tip("paired"))
    st.dataframe(found, hide_index=True, height="content")
    if (found["Told apart"] == "no").any():
        st.caption(
            "Plans that are not told apart differ in loss by less than twice the standard error "
            "of their difference, and answer no differently by the exact McNemar test: take the "
            "cheaper one, or evaluate on more text or items."
        )


def _ask(names: Mapping[str, str], a: str, others: Sequence[str]) -> None:
    left, right = st.columns([1, 2])
    state.set_widget(_A, a)
    left.selectbox(
        "Plan A",
        list(names),
        format_func=lambda key: names.get(key, key),
        key=_A,
        on_change=lambda: _make_a(str(state.widget(_A)), a),
        help=tip("plan"),
    )
    state.set_widget(_OTHERS, list(others))
    right.multiselect(
        "Compared with",
        list(names),
        format_func=lambda key: names.get(key, key),
        key=_OTHERS,
        on_change=_take_others,
        max_selections=len(LETTERS) - 1,
        help=tip("compared_with"),
    )


def _take_others() -> None:
    picked = state.widget(_OTHERS)
    state.select("other", ",".join(map(str, picked)) if isinstance(picked, list) else "")


def _make_a(key: str, before: str) -> None:
    """Make a plan A; where it was compared, it changes places with the plan that was A before."""
    others = state.widget(_OTHERS)
    if isinstance(others, list) and key in others:
        swapped = [before if other == key else other for other in others]
        state.select("other", ",".join(str(other) for other in swapped))
    state.select("trial", key)


def _known(found: Cloud, keys: Sequence[str | None]) -> list[str]:
    """Return those keys, each once, that belong to a plan."""
    able = {}
    for key in keys:
        point = found.find(key)
        if point is not None and point.plan is not None:
            able[point.key] = True
    return list(able)


def _listed(found: Cloud, wanted: Sequence[str]) -> dict[str, str]:
    """Return key -> name of the plans that the lists offer."""
    able = np.flatnonzero(found.has_plan)
    if len(able) > N_LISTED:
        named = np.flatnonzero((found.is_kind(BASELINE) | found.is_named) & found.has_plan)
        held = [index for index in map(found.position, wanted) if index is not None]
        best = [*found.front("loss"), *found.front("accuracy")]
        able = np.unique(np.array([*named, *held, *best], dtype=np.int64))[:N_LISTED]
    listed = [found[int(index)] for index in able]
    return {point.key: f"{point.name} · {point.run_name}" for point in listed}


def difference_words(what: str, n_different: int, n_linears: int) -> str:
    """Return how many Linears of a plan differ from others, which are named."""
    if not n_different:
        return f"No Linear differs from {what}."
    if n_different == n_linears:
        return f"All {n_linears} Linears differ from {what}."
    return f"{n_different} of {n_linears} Linears differ from {what}; they are ringed."

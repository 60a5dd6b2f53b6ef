"""Shared pieces of pages: title, rows of figures, errors, the button that starts a step, the layer
map.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from app import charts_base, charts_plan, line, navigation, services, state, wording
from app.glossary import tip
from qpruner_core.catalog import check_spec
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import QPrunerError
from qpruner_core.store import uploads

EVERY = 1.5
"""Seconds between two looks at what is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number on screen; says whether it is measured or estimated, unless it is asked for or
    counted.
    """

    label: str
    value: str
    term: str
    """Glossary term of the tooltip."""
    origin: str = ""
    """``"measured"``, ``"estimated"`` or empty."""
    change: str | None = None
    """Difference to a reference, with its unit."""
    lower_is_better: bool = True
    before: str = ""
    """What it was, where the change alone does not say it."""


def title(key: str) -> None:
    """Draw a page's title and the question it answers."""
    entry = navigation.entry(key)
    st.title(entry.title, anchor=False)
    st.caption(entry.question)


def error_panel(sentence: str) -> None:
    """Show a sentence about what went wrong and what to do."""
    st.error(sentence, icon=":material/error:")


def figures(row: Sequence[Figure]) -> None:
    """Draw figures side by side."""
    for column, figure in zip(st.columns(len(row)), row, strict=True):
        with column.container(border=True, height="stretch", gap="xsmall"):
            _metric(figure)
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                if figure.origin:
                    origin_badge(figure.origin)
                if figure.before:
                    st.caption(f"before {figure.before}", width="content")


def _metric(figure: Figure) -> None:
    """Draw number and change; a change of nothing has neither sign, arrow nor colour."""
    change = figure.change
    is_none = change is not None and wording.is_nothing(change)
    if change is not None and is_none:
        change = change.lstrip("+-")
    st.metric(
        figure.label,
        figure.value,
        delta=change,
        delta_color="off" if is_none else "inverse" if figure.lower_is_better else "normal",
        delta_arrow="off" if is_none else "auto",
        help=tip(figure.term),
    )


def origin_badge(origin: str) -> None:
    """Say whether numbers are measured or estimated, in one look everywhere."""
    st.badge(origin, color="green" if origin == wording.MEASURED else "orange", help=tip(origin))


def ask(request: Callable[[], object]) -> None:
    """Ask the job engine for something and draw the page anew, or show why it refuses."""
    try:
        request()
    except QPrunerError as error:
        error_panel(str(error))
    else:
        st.rerun()


def start(
    record: RunRecord,
    spec: RunSpec,
    goal: str,
    label: str,
    *,
    redo: str | None = None,
    busy: bool = False,
    workers: int = 1,
) -> None:
    """Draw the button that puts a step on the queue; old results are kept in a copy unless the
    person says not.

    Args:
        record: The run as it stands.
        spec: What is asked for now.
        goal: The step to reach.
        label: Text of the button.
        redo: An earlier step whose result no longer fits the spec.
        busy: Whether a job of this run is under way, which disables the button.
        workers: Over how many workers a search is spread.
    """
    steps = record.steps_to(goal, *([redo] if redo is not None else []))
    lost = line.emptied_by(record, steps)
    # A copy would start an empty study, whereas this run's goes on with its measured trials.
    goes_on = steps == ("search",) and line.asks_more_trials(record, spec.search)
    keep = bool(lost) and st.toggle(
        "Work in a copy",
        value=not goes_on,
        help=tip("copy"),
        key=f"copy/{goal}/more" if goes_on else f"copy/{goal}",
    )
    if goes_on:
        st.caption("The search goes on with the trials that are measured already.")
    elif lost and not keep:
        names = ", ".join(wording.STEP_TITLES[step] for step in lost)
        st.caption(f"Starting replaces the results of: {names}.")
    if st.button(
        label, type="primary", disabled=busy, help=tip(f"start_{goal}"), key=f"start/{goal}"
    ):
        launch(record, spec, steps, keep=keep, workers=workers)


def launch(
    record: RunRecord,
    spec: RunSpec,
    steps: tuple[str, ...],
    *,
    keep: bool = False,
    workers: int = 1,
) -> None:
    """Put steps of a run on the queue, in a copy if asked, and draw the page anew."""
    try:
        check_spec(spec)
        target = services.store().fork(record.run_id, steps[0]) if keep else record
        spec = uploads.moved(spec, *map(services.store().folder, (record.run_id, target.run_id)))
        services.jobs().start_line(target.run_id, steps, spec, workers=workers)
    except QPrunerError as error:
        error_panel(str(error))
        return
    state.choose_run(target.run_id)
    st.rerun()


def while_busy(busy: bool, draw: Callable[[], None]) -> None:
    """Draw something, again and again as long as a job is under way."""
    st.fragment(draw, run_every=EVERY if busy else None)()


def layer_map(
    layout: ModelLayout, plan: PrecisionPlan, key: str, marked: Collection[str] = ()
) -> None:
    """Draw which precision every Linear has; marked ones are ringed."""
    made = charts_plan.layer_map(layout, plan, marked)
    st.plotly_chart(made, key=key, config=charts_base.PLAIN)


def widths(pixels: Mapping[str, int]) -> dict[str, Any]:
    """Return columns of a table as wide as what stands in them, so that it scrolls rather than
    clips.
    """
    return {name: st.column_config.Column(width=width) for name, width in pixels.items()}


def with_part(spec: RunSpec, **parts: object) -> RunSpec:
    """Return a run's spec with some steps asked anew."""
    return replace(spec, **parts)  # type: ignore[arg-type]

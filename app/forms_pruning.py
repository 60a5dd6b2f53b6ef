"""Widgets in, `PruningSpec` out: the plain choices in sight, the others behind one click."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd
import streamlit as st

from app import state, tables_pruning, units, widgets, wording_pruning
from app.forms import option_fields
from app.glossary import tip
from qpruner_core.catalog import CRITERIA
from qpruner_core.domain.layout import KINDS, ModelLayout
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.spec import (
    COMPENSATIONS,
    SCOPES,
    SHAPES,
    ImportanceSpec,
    PruningSpec,
)
from qpruner_core.errors import QPrunerError
from qpruner_core.pruning.selection import largest_ratio, protected_layers
from qpruner_core.registry import OptionValue

RATIO = "prune/ratio"
CRITERION = "prune/criterion"
COMPENSATION = "prune/compensation"
MOST_ROWS, SHOWN_ROWS, ROW_PIXELS = 16, 10, 35
"""Rows up to which a table shows all of them, rows it shows else, and the height of one."""
MOST_ROUNDS = 50
MOST_RATIO = 0.99
"""End of the slider where the other fields leave nothing that could be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the form asks for."""

    pruning: PruningSpec
    importance: ImportanceSpec
    """What has to be scored for it: the run's criteria and the chosen one, with its options."""
    is_scored: bool
    """Whether the run holds the scores of just that criterion with just these options."""


def pruning_form(record: RunRecord, layout: ModelLayout) -> Asked | None:
    """Ask how much leaves and by which rule; None, with the reason drawn, where nothing can."""
    spec = record.spec.pruning
    # The end of the slider depends on what stands below it, which is therefore drawn first.
    top = st.container()
    criterion = _criterion_field(record)
    scope = _choice("Scope", SCOPES, spec.scope, wording_pruning.SCOPES, tip("scope"))
    shape = _choice("Shape", SHAPES, spec.shape, wording_pruning.SHAPES, tip("shape"))
    asked = replace(spec, ratio=0.0, criterion=criterion, scope=scope, shape=shape)
    with st.expander("More options"):
        asked, options = _more(record, asked, layout)
    try:
        largest = largest_ratio(layout, asked)
        reason = ""
    except QPrunerError as error:
        largest, reason = MOST_RATIO, str(error)
    with top:
        ratio = _ratio_slider(largest, spec.ratio)
    try:
        asked = replace(asked, ratio=ratio)
    except QPrunerError as error:
        reason = reason or str(error)
    if reason:
        widgets.error_panel(reason)
        return None
    return Asked(
        pruning=asked,
        importance=_importance(record, criterion, options),
        is_scored=_is_scored(record, criterion, options),
    )


def use(criterion: str, compensation: str) -> None:
    """Set criterion and compensation from a callback, before the form is drawn again, and say
    so, as the form may be out of sight.
    """
    state.set_widget(CRITERION, criterion)
    state.set_widget(COMPENSATION, compensation)
    how = wording_pruning.COMPENSATED[compensation]
    words = f"“{wording_pruning.criterion(criterion)}” {how} is now in the form above."
    st.toast(words, icon=":material/check:")


def _ratio_slider(largest: float, wanted: float) -> float:
    most = int(100 * largest) or int(100 * MOST_RATIO)
    known = state.widget(RATIO)
    now = known if isinstance(known, int) else round(100 * wanted)
    # Set rather than handed over: a slider with another end would start anew.
    state.set_widget(RATIO, min(most, now))
    percent = st.slider("Pruning ratio, %", 0, most, step=1, help=tip("pruning_ratio"), key=RATIO)
    return percent / 100


def _criterion_field(record: RunRecord) -> str:
    entries = {entry.name: entry for entry in wording_pruning.unit_criteria()}
    scored = record.score.spec.criteria if record.score is not None else ()
    names = sorted(entries, key=lambda name: name not in scored)
    wanted = record.spec.pruning.criterion
    _begin_with(CRITERION, wanted if wanted in names else names[0])
    chosen = st.selectbox(
        "Criterion",
        names,
        format_func=lambda name: (
            entries[name].title + (", not scored yet" if scored and name not in scored else "")
        ),
        help=tip("criterion"),
        key=CRITERION,
    )
    return str(chosen)


def _begin_with(key: str, value: str) -> None:
    """Give a selectbox its first value. By its key rather than its index: "Use" sets the value
    from elsewhere, and a widget may have but one origin.
    """
    if state.widget(key) is None:
        state.set_widget(key, value)


def _choice(
    label: str, names: tuple[str, ...], now: str, words: Mapping[str, str], help_text: str
) -> str:
    key = f"prune/{label.lower()}"
    _begin_with(key, now)
    return str(st.selectbox(label, names, format_func=words.__getitem__, help=help_text, key=key))


def _more(
    record: RunRecord, asked: PruningSpec, layout: ModelLayout
) -> tuple[PruningSpec, dict[str, OptionValue]]:
    """Ask for what has a good default, and for the options of the criterion."""
    asked = replace(asked, kinds=_kinds_field(asked, layout))
    asked = _depth_fields(asked, layout.n_layers)
    compensation = _choice(
        "Compensation",
        COMPENSATIONS,
        asked.compensation,
        wording_pruning.COMPENSATION_CHOICES,
        tip("compensation"),
    )
    multiple = st.number_input(
        "MLP width multiple, channels",
        1,
        1024,
        asked.width_multiple,
        help=tip("width_multiple"),
        key="prune/multiple",
    )
    first, last = _protected_fields(asked, layout.n_layers)
    ratios = _ratios_by_hand(asked, layout.n_layers)
    more = replace(
        asked,
        compensation=compensation,
        width_multiple=int(multiple),
        protect_first=first,
        protect_last=last,
        layer_ratios=ratios,
    )
    return more, _criterion_options(record, asked.criterion)


def _kinds_field(asked: PruningSpec, layout: ModelLayout) -> tuple[str, ...]:
    """Ask which units may leave, among those that the model has."""
    present = units.kinds_of(layout)
    chosen = st.pills(
        "Units that may leave",
        present,
        selection_mode="multi",
        default=[kind for kind in present if kind in asked.kinds],
        format_func=wording_pruning.kind,
        help=tip("kinds"),
        key="prune/kinds",
        wrap=True,
    )
    # A kind that this model lacks stays as it was: it takes no part.
    lacking = set(asked.kinds) - set(present) if chosen else set()
    return tuple(kind for kind in KINDS if kind in lacking.union(chosen))


def _depth_fields(asked: PruningSpec, n_layers: int) -> PruningSpec:
    """Ask how many layers leave whole, and in how many rounds all of it leaves."""
    left, right = st.columns(2)
    most = max(0, n_layers - 1)
    drop = left.number_input(
        "Whole layers to drop",
        0,
        most,
        min(asked.drop_layers, most),
        help=tip("drop_layers"),
        key="prune/drop_layers",
    )
    rounds = right.number_input(
        "Rounds",
        1,
        max(MOST_ROUNDS, asked.iterations),
        asked.iterations,
        help=tip("iterations"),
        key="prune/rounds",
    )
    return replace(asked, drop_layers=int(drop), iterations=int(rounds))


def _protected_fields(spec: PruningSpec, n_layers: int) -> tuple[int | None, int | None]:
    own = st.toggle(
        "Set protected layers",
        value=spec.protect_first is not None or spec.protect_last is not None,
        help=tip("protected_layers"),
        key="prune/protect",
    )
    if not own:
        return None, None
    left, right = st.columns(2)
    # From the automatic numbers where none was given, so that the switch alone changes no cut.
    first = left.number_input(
        "First layers kept whole",
        0,
        n_layers,
        len(protected_layers(n_layers, replace(spec, protect_last=0))),
        help=tip("protected_layers"),
        key="prune/protect_first",
    )
    last = right.number_input(
        "Last layers kept whole",
        0,
        n_layers,
        len(protected_layers(n_layers, replace(spec, protect_first=0))),
        help=tip("protected_layers"),
        key="prune/protect_last",
    )
    return int(first), int(last)


def _ratios_by_hand(spec: PruningSpec, n_layers: int) -> dict[str, float]:
    own = st.toggle(
        "Set ratios of layers by hand",
        value=bool(spec.layer_ratios),
        help=tip("layer_ratios"),
        key="prune/by_hand",
    )
    if not own:
        return {}
    edited = st.data_editor(
        tables_pruning.from_ratios(spec.layer_ratios, n_layers),
        key="prune/ratios",
        height=_table_height(n_layers),
        placeholder="automatic",
        column_config={
            "layer": st.column_config.NumberColumn("Layer", help=tip("layer")),
            tables_pruning.RATIO: st.column_config.NumberColumn(
                help=tip("layer_ratios"), min_value=0.0, max_value=99.0, step=1.0, format="%.0f"
            ),
        },
    )
    return tables_pruning.to_ratios(pd.DataFrame(edited))


def _table_height(n_rows: int) -> Literal["content"] | int:
    """Return a height that shows all rows, or so many and a half that more are expected."""
    return "content" if n_rows <= MOST_ROWS else int(ROW_PIXELS * (SHOWN_ROWS + 1.5))


def _criterion_options(record: RunRecord, criterion: str) -> dict[str, OptionValue]:
    entry = CRITERIA.entry(criterion)
    if not entry.options:
        return {}
    st.caption(f"Options of {entry.title}; another value scores the model anew.")
    return option_fields(entry, _known_options(record, criterion), "prune")


def _known_options(record: RunRecord, criterion: str) -> Mapping[str, OptionValue]:
    known = record.score.spec if record.score is not None else record.spec.importance
    return known.options.get(criterion, {})


def _importance(
    record: RunRecord, criterion: str, options: dict[str, OptionValue]
) -> ImportanceSpec:
    """Return what has to be scored; unchanged where the run's own scores serve."""
    known = record.spec.importance
    criteria = tuple(dict.fromkeys((*known.criteria, criterion)))
    if CRITERIA.options(criterion, known.options.get(criterion, {})) == options:
        return replace(known, criteria=criteria)
    return replace(known, criteria=criteria, options={**known.options, criterion: options})


def _is_scored(record: RunRecord, criterion: str, options: dict[str, OptionValue]) -> bool:
    if record.score is None or criterion not in record.score.spec.criteria:
        return False
    scored = record.score.spec.options.get(criterion, {})
    return CRITERIA.options(criterion, scored) == options

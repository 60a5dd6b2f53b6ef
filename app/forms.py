"""Widgets in, domain values out, for what runs, scoring and pruning ask; every field carries its
tooltip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import streamlit as st

from app.glossary import tip
from qpruner_core.catalog import CRITERIA
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.spec import SCOPES, SHAPES, ImportanceSpec, ModelSpec, PruningSpec
from qpruner_core.pruning.selection import largest_ratio
from qpruner_core.registry import Entry, Option, OptionValue

DEMO, FOLDER, HUB = "Demo", "Folder", "Hub"
SHAPE_WORDS = {
    "per-layer": "Every layer its own widths",
    "uniform": "One width for all layers",
}
SCOPE_WORDS = {
    "per-layer": "Same share in every layer",
    "global": "Least important of all layers",
    "balanced": "Least important of all layers, on one scale",
}


def option_fields(
    entry: Entry, given: Mapping[str, OptionValue], key: str
) -> dict[str, OptionValue]:
    """Draw every option of a catalogue entry and return the values."""
    return {
        option.name: _option_field(entry, option, given.get(option.name, option.default), key)
        for option in entry.options
    }


def _option_field(entry: Entry, option: Option, value: OptionValue, key: str) -> OptionValue:
    label = f"{entry.title}: {option.name.replace('_', ' ')}"
    name = f"{key}/{entry.name}/{option.name}"
    if isinstance(option.default, bool):
        return st.toggle(label, bool(value), help=option.help, key=name)
    if option.choices:
        index = option.choices.index(str(value))
        return str(st.selectbox(label, option.choices, index, help=option.help, key=name))
    if isinstance(option.default, int):
        low = int(option.low) if option.low is not None else None
        high = int(option.high) if option.high is not None else None
        return int(st.number_input(label, low, high, int(value), help=option.help, key=name))
    if isinstance(option.default, float):
        return float(
            st.number_input(
                label, option.low, option.high, float(value), help=option.help, key=name
            )
        )
    return str(st.text_input(label, str(value), help=option.help, key=name))


def model_form() -> ModelSpec | None:
    """Ask which model; None until a folder or hub id is given."""
    where = st.segmented_control(
        "Model from", [DEMO, FOLDER, HUB], default=DEMO, required=True, help=tip("model_source")
    )
    if where == DEMO:
        return ModelSpec(source="demo")
    if where == FOLDER:
        path = st.text_input(
            "Folder on the server", help=tip("model_folder"), placeholder="/models/…"
        )
        return _with_trust(path.strip(), None)
    left, right = st.columns([3, 1])
    name = left.text_input("Hub id", help=tip("hub_id"), placeholder="organisation/name")
    revision = right.text_input("Revision", help=tip("revision"), placeholder="main")
    return _with_trust(name.strip(), revision.strip() or None)


def _with_trust(source: str, revision: str | None) -> ModelSpec | None:
    trust = st.checkbox("Trust remote code", value=False, help=tip("trust_remote_code"))
    if trust:
        st.warning(
            "Python files that come with this model will run on the worker with its rights. Tick "
            "this only "
            "for a repository whose files you have read."
        )
    if not source:
        return None
    return ModelSpec(source=source, revision=revision, trust_remote_code=trust)


def importance_form(spec: ImportanceSpec) -> ImportanceSpec:
    """Ask which criteria score, with the options of each."""
    criteria = st.multiselect(
        "Criteria",
        CRITERIA.names(),
        default=list(spec.criteria),
        format_func=lambda name: CRITERIA.entry(name).title,
        help=tip("criterion"),
    )
    with st.expander("Options of the criteria"):
        seed = st.number_input("Seed", 0, 2**31 - 1, spec.seed, help=tip("seed"), key="score/seed")
        options = {
            name: option_fields(CRITERIA.entry(name), spec.options.get(name, {}), "score")
            for name in criteria
            if CRITERIA.entry(name).options
        }
    return replace(spec, criteria=tuple(criteria), options=options, seed=int(seed))


def pruning_form(spec: PruningSpec, layout: ModelLayout, scored: Sequence[str]) -> PruningSpec:
    """Ask for ratio, criterion, scope, shape and protected layers; answers at once on every
    move.
    """
    units = [entry.name for entry in CRITERIA if entry.facts["scores"] == "units"]
    offered = [name for name in units if name in scored] or units
    largest = max(1, int(100 * largest_ratio(layout, spec)))
    ratio = st.slider(
        "Pruning ratio, %",
        0,
        largest,
        min(largest, round(100 * spec.ratio)),
        step=1,
        help=tip("pruning_ratio"),
        key="prune/ratio",
    )
    criterion = st.selectbox(
        "Criterion",
        offered,
        index=offered.index(spec.criterion) if spec.criterion in offered else 0,
        format_func=lambda name: CRITERIA.entry(name).title,
        help=tip("criterion"),
        key="prune/criterion",
    )
    scope = st.selectbox(
        "Scope",
        SCOPES,
        SCOPES.index(spec.scope),
        format_func=SCOPE_WORDS.__getitem__,
        help=tip("scope"),
    )
    shape = st.selectbox(
        "Shape",
        SHAPES,
        SHAPES.index(spec.shape),
        format_func=SHAPE_WORDS.__getitem__,
        help=tip("shape"),
    )
    multiple = st.number_input(
        "MLP width multiple, channels", 1, 1024, spec.width_multiple, help=tip("width_multiple")
    )
    first, last = _protected_fields(spec, layout.n_layers)
    return replace(
        spec,
        ratio=ratio / 100,
        criterion=str(criterion),
        scope=str(scope),
        shape=str(shape),
        protect_first=first,
        protect_last=last,
        width_multiple=int(multiple),
    )


def _protected_fields(spec: PruningSpec, n_layers: int) -> tuple[int | None, int | None]:
    own = st.toggle(
        "Set protected layers",
        value=spec.protect_first is not None or spec.protect_last is not None,
        help=tip("protected_layers"),
    )
    if not own:
        return None, None
    left, right = st.columns(2)
    first = left.number_input(
        "First layers kept whole",
        0,
        n_layers,
        spec.protect_first or 0,
        help=tip("protected_layers"),
    )
    last = right.number_input(
        "Last layers kept whole", 0, n_layers, spec.protect_last or 0, help=tip("protected_layers")
    )
    return int(first), int(last)

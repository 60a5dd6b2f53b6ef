"""Widgets in, domain values out, for what runs and scoring ask; each field has its tooltip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import streamlit as st

from app import services, widgets, wording
from app.glossary import tip
from qpruner_core.catalog import CRITERIA
from qpruner_core.domain.spec import ImportanceSpec, ModelSpec
from qpruner_core.registry import Entry, Option, OptionValue

DEMO, FOLDER, HUB = "Demo", "Folder", "Hub"


def option_fields(
    entry: Entry, given: Mapping[str, OptionValue], key: str
) -> dict[str, OptionValue]:
    """Draw every option of a catalogue entry and return the values."""
    return {
        option.name: _option_field(entry, option, given.get(option.name, option.default), key)
        for option in entry.options
    }


def _option_field(entry: Entry, option: Option, value: OptionValue, key: str) -> OptionValue:
    label = f"{entry.title}: {wording.option(option.name)}"
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
        found = path.strip()
        if found and not services.folder_exists(found):
            widgets.error_panel(
                f"There is no folder {found!r} on the server. Check the path; models of the hub "
                "are asked for under Hub."
            )
            found = ""
        return _with_trust(found, None)
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

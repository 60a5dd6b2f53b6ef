"""Widgets in, domain values out, for the text and tasks that a run reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import streamlit as st

from app import wording
from app.glossary import tip
from qpruner_core.domain.spec import DataSpec, ModelSpec
from qpruner_core.errors import QPrunerError
from qpruner_core.store.home import check_allowed

OWN = "own"
TEXT_WORDS = {"demo": "Demo text", "wikitext2": "WikiText-2", OWN: "Own files"}
TASK_WORDS = {"demo": "Demo tasks", "none": "No tasks", OWN: "Own folder"}
USES = {"calibration": "Calibration text", "training": "Training text", "heldout": "Held-out text"}


def data_form(model: ModelSpec) -> DataSpec | None:
    """Ask which text and tasks a run reads; None until it is complete, with the reason drawn.

    The demo model starts with its own language, any other model with English and without tasks.
    """
    demo = model.source == "demo"
    suited = DataSpec() if demo else _english()
    # One set of fields for each kind of model, so that the other kind does not keep its choice.
    group = "demo" if demo else "other"
    left, right = st.columns(2)
    with left:
        text = _choice("Text", TEXT_WORDS, suited.heldout, tip("texts"), f"data/{group}/text")
    with right:
        tasks = _choice("Tasks", TASK_WORDS, suited.tasks, tip("tasks"), f"data/{group}/tasks")
    try:
        sources = {use: _text(use, text) for use in USES}
        folder = _path("Folder of tasks", tip("tasks_folder")) if tasks == OWN else tasks
        counts = _counts(suited)
        if not folder or not all(sources.values()):
            st.info("Name the files and folders on the server that this run reads.")
            return None
        data = DataSpec(**sources, tasks=folder, **counts)  # type: ignore[arg-type]
    except QPrunerError as error:
        st.error(str(error), icon=":material/error:")
        return None
    warn_of_demo(model, data)
    return data


def warn_of_demo(model: ModelSpec, data: DataSpec) -> None:
    """Say so where a real model reads the demo's invented language."""
    sources = (data.calibration, data.training, data.heldout, data.tasks)
    if model.source != "demo" and "demo" in sources:
        st.warning(wording.DEMO_TEXT)


def _english() -> DataSpec:
    text = "wikitext2"
    return replace(DataSpec(), calibration=text, training=text, heldout=text, tasks="none")


def _choice(label: str, words: dict[str, str], suited: str, help_text: str, key: str) -> str:
    names = list(words)
    return str(
        st.selectbox(
            label,
            names,
            names.index(suited),
            format_func=words.__getitem__,
            help=help_text,
            key=key,
        )
    )


def _text(use: str, chosen: str) -> str:
    return _path(USES[use], tip("text_file")) if chosen == OWN else chosen


def _path(label: str, help_text: str) -> str:
    named = st.text_input(label, help=help_text, placeholder="/data/…", key=f"data/{label}")
    return str(check_allowed(Path(named.strip()))) if named.strip() else ""


def _counts(suited: DataSpec) -> dict[str, int]:
    with st.expander("Lengths and counts of the data"):
        left, right = st.columns(2)
        length = left.number_input(
            "Sequence length, tokens", 8, None, suited.sequence_length, help=tip("data_length")
        )
        items = right.number_input(
            "Items per task", 0, None, suited.items_per_task, help=tip("items_per_task")
        )
        calibration = left.number_input(
            "Calibration, tokens",
            8,
            None,
            suited.calibration_tokens,
            help=tip("calibration_tokens"),
        )
        heldout = right.number_input(
            "Held-out, tokens", 8, None, suited.heldout_tokens, help=tip("heldout_tokens")
        )
    return {
        "sequence_length": int(length),
        "items_per_task": int(items),
        "calibration_tokens": int(calibration),
        "heldout_tokens": int(heldout),
    }

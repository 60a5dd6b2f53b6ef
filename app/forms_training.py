"""Which text recovery trains on: that of the run, a known one, or a person's own file, which is
checked before anything starts.

What a file says is drawn as plain text, never as markup.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from app import services, state, widgets, wording
from app.glossary import tip
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import BadInputError, NotReadyError, QPrunerError
from qpruner_core.inspection.instructions import InstructionCard, examine, is_instruction_file
from qpruner_core.inspection.texts import TextCard, examine_text
from qpruner_core.store import uploads
from qpruner_core.store.home import check_allowed

OF_RUN, OWN, UPLOAD = "", "own", "upload"
KNOWN_WORDS = {"demo": "Demo text", "wikitext2": "WikiText-2"}
SUFFIXES = (".json", ".jsonl", ".txt")
MOST_MEGABYTES = 64
"""Largest file that the browser may send, in units of 2**20 bytes; larger ones are put on the
server."""
MOST_CHARACTERS = 240
"""Of a file's first line that are shown."""


def fields(record: RunRecord, spec: RecoverySpec, key: str) -> dict[str, Any]:
    """Ask which text, and how instructions are read; returns name -> value for a `RecoverySpec`.

    Args:
        record: The run, whose folder takes an uploaded file.
        spec: As the form begins.
        key: Start of the keys of fields that a preset fills.

    Raises:
        NotReadyError: No file is named or sent yet.
        QPrunerError: The file is missing, not allowed or does not fit; the sentence says what.
    """
    training = _source_field(record, spec.training)
    source = training or record.spec.data.training
    if training not in (OF_RUN, *KNOWN_WORDS):
        _found(training)
    if training == "demo" and record.spec.model.source != "demo":
        st.warning(wording.DEMO_TEXT)
    made: dict[str, Any] = {"training": training}
    if is_instruction_file(source):
        made["packing"] = st.toggle(
            "Several examples in a sequence", spec.packing, help=tip("packing"), key=f"{key}/pack"
        )
        made["train_on_prompt"] = st.toggle(
            "Learn the instructions too",
            spec.train_on_prompt,
            help=tip("train_on_prompt"),
            key=f"{key}/prompt",
        )
    return made


def _source_field(record: RunRecord, now: str) -> str:
    given = [str(path) for path in uploads.listed(services.store().folder(record.run_id))]
    known = [OF_RUN, *KNOWN_WORDS, *given, OWN, UPLOAD]
    key = f"recover/{record.run_id}/training"
    # By its key rather than its index: an uploaded file sets the value from elsewhere.
    if state.widget(key) not in known:
        state.set_widget(key, now if now in known else OWN)
    chosen = str(
        st.selectbox(
            "Train on",
            known,
            format_func=lambda name: _words(record, name),
            help=tip("training_text"),
            key=key,
        )
    )
    if chosen == UPLOAD:
        _upload_field(record.run_id, key)
        raise NotReadyError("No training text is chosen yet. Upload a file, or choose another.")
    return _path_field(now, key) if chosen == OWN else chosen


def _words(record: RunRecord, name: str) -> str:
    if name == OF_RUN:
        return f"As the run: {wording.text_source(record.spec.data.training)}"
    words = KNOWN_WORDS | {OWN: "A file on the server", UPLOAD: "Upload a file"}
    return words.get(name) or Path(name).name


def _path_field(now: str, key: str) -> str:
    path = st.text_input(
        "Training file on the server",
        now if now not in KNOWN_WORDS else "",
        help=tip("training_file"),
        placeholder="/data/…",
        key=f"{key}/path",
    ).strip()
    if not path:
        raise NotReadyError(
            "No training file is named yet. Name a text (one document a line) or an instruction "
            "file (.json, .jsonl) on the server, or choose another text."
        )
    return str(check_allowed(Path(path)))


def _upload_field(run_id: str, key: str) -> None:
    st.file_uploader(
        "Training file",
        [suffix.removeprefix(".") for suffix in SUFFIXES],
        max_upload_size=MOST_MEGABYTES,
        help=tip("upload"),
        key=f"{key}/file",
        on_change=lambda: _take(run_id, key),
    )
    refused = state.remembered(f"{key}/refused")
    if isinstance(refused, str) and refused:
        widgets.error_panel(refused)


def _take(run_id: str, key: str) -> None:
    """Keep the file that was sent, if it is good, and choose it; for use as a callback."""
    sent = state.widget(f"{key}/file")
    if sent is None:
        state.remember(f"{key}/refused", "")
        return
    try:
        path = keep_file(run_id, str(sent.name), sent.getvalue())  # type: ignore[attr-defined]
    except QPrunerError as error:
        state.remember(f"{key}/refused", str(error))
    else:
        state.remember(f"{key}/refused", "")
        state.set_widget(key, str(path))


def keep_file(run_id: str, name: str, content: bytes) -> Path:
    """Keep a person's training file in the folder of a run, once it is found to be good.

    Raises:
        QPrunerError: Its name, size or content do not fit; nothing of it stays.
    """
    if Path(name).suffix.lower() not in SUFFIXES:
        raise BadInputError(
            f"{Path(name).name!r} is no training file. Send a text (.txt, one document a line) or "
            f"instructions (.json, .jsonl)."
        )
    most = MOST_MEGABYTES << 20
    if len(content) > most:
        raise BadInputError(
            f"{Path(name).name!r} has {wording.size(len(content))}, more than the "
            f"{wording.size(most)} that can be sent. Put it on the server and name its path."
        )
    return uploads.keep(services.store().folder(run_id), name, content, _examine)


def _examine(path: Path) -> InstructionCard | TextCard:
    return examine(path) if is_instruction_file(path.name) else examine_text(path)


@st.cache_resource(show_spinner="Checking the training file", max_entries=16)
def _examined(path: str, stamp: tuple[int, int]) -> InstructionCard | TextCard:
    return _examine(Path(path))


def card_of(path: str) -> InstructionCard | TextCard:
    """Return what a training file holds; read again only when it has changed.

    Raises:
        QPrunerError: It is missing or does not fit; the first bad line is named.
    """
    try:
        found = Path(path).stat()
    except OSError:
        return _examine(Path(path))
    return _examined(path, (found.st_mtime_ns, found.st_size))


def _found(path: str) -> None:
    """Draw what a training file holds."""
    card = card_of(path)
    if isinstance(card, InstructionCard):
        st.caption(
            f"{card.n_examples:,} examples, {card.n_with_input:,} of them with an input; "
            f"{wording.count(card.n_characters)} characters. The first instruction:"
        )
        st.text(_short(card.first_instruction))
        for sentence in card.warnings:
            st.warning(sentence)
        return
    st.caption(
        f"{card.n_documents:,} documents, {wording.count(card.n_characters)} characters. The "
        f"first one begins:"
    )
    st.text(_short(card.first_line))


def _short(words: str) -> str:
    return words if len(words) <= MOST_CHARACTERS else f"{words[:MOST_CHARACTERS]}…"

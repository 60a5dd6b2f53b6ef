"""What holds for all pages on all faces."""

from __future__ import annotations

import pytest

from app.glossary import terms
from app.navigation import PAGES, ROOT

KEYS = [entry.key for entry in PAGES]
WIDGETS = (
    "button", "checkbox", "toggle", "slider", "selectbox", "multiselect", "number_input",
    "text_input", "pills", "radio", "segmented_control", "metric",
)  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("upto", [None, "load", "score", "prune", "quantize", "search", "export"])
def test_every_face_is_drawn_and_every_widget_has_a_label_and_a_tooltip(
    open_page, run_at, key, upto
):
    at = open_page(key, run_at(upto))
    assert at.title[0].value == next(entry.title for entry in PAGES if entry.key == key)
    for kind in WIDGETS:
        for widget in at.get(kind):
            assert widget.label, kind
            assert getattr(widget.proto, "help", ""), f"{kind} {widget.label!r} has no tooltip"


@pytest.mark.parametrize("source", ["mixtral", "olmo2"])
@pytest.mark.parametrize("key", ["runs", "importance", "pruning"])
@pytest.mark.parametrize("upto", ["load", "score", "prune"])
def test_other_families_are_drawn_too(open_page, run_at, key, upto, source):
    """One with experts, one whose heads cannot leave."""
    at = open_page(key, run_at(upto, source=source))
    assert at.title[0].value == next(entry.title for entry in PAGES if entry.key == key)
    assert not at.error


@pytest.mark.parametrize("key", KEYS)
def test_a_run_that_is_gone_is_answered_with_a_sentence(open_page, run_at, said, key):
    record = run_at("score")
    object.__setattr__(record, "run_id", "20200101-000000-gone-0000")
    at = open_page(key, record)
    assert key in ("runs", "jobs") or "may have been deleted" in said(at)


@pytest.mark.parametrize("key", KEYS)
def test_the_run_stays_in_the_address(open_page, run_at, key):
    record = run_at("search")
    at = open_page(key, record)
    assert at.query_params["run"] in (record.run_id, [record.run_id])


def test_every_page_file_is_in_the_menu():
    files = {path.stem for path in (ROOT / "pages").glob("*.py")} - {"__init__"}
    assert files == set(KEYS)


def test_every_page_is_thin():
    lengths = {key: len((ROOT / "pages" / f"{key}.py").read_text().splitlines()) for key in KEYS}
    assert max(lengths.values()) <= 80, lengths


def test_every_glossary_term_is_one_sentence():
    assert all(text.endswith(".") and "\n" not in text for text in terms().values())

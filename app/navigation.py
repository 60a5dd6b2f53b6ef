"""Every page in the order of the line; adding a page is one line here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import streamlit as st
from streamlit.navigation.page import Page

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageEntry:
    """One page: its file under `pages/`, its words and its icon."""

    key: str
    """File name without ``.py`` and last part of the address."""
    title: str
    icon: str
    """A Material symbol that ships with Streamlit."""
    question: str
    """What the page answers; shown under its title."""


PAGES = (
    PageEntry(
        key="runs",
        title="Runs",
        icon=":material/stacks:",
        question="What do you want to compress?",
    ),
    PageEntry(
        key="importance",
        title="Importance",
        icon=":material/grid_on:",
        question="What is every layer worth?",
    ),
    PageEntry(
        key="pruning", title="Pruning", icon=":material/content_cut:", question="How much can go?"
    ),
    PageEntry(
        key="search",
        title="Search",
        icon=":material/travel_explore:",
        question="Which precision where?",
    ),
    PageEntry(
        key="results",
        title="Results",
        icon=":material/scatter_plot:",
        question="Which one do I take?",
    ),
    PageEntry(
        key="recovery",
        title="Recovery",
        icon=":material/healing:",
        question="Can training bring it back?",
    ),
    PageEntry(
        key="export", title="Export", icon=":material/deployed_code:", question="How do I use it?"
    ),
    PageEntry(
        key="jobs", title="Jobs", icon=":material/memory:", question="What is the machine doing?"
    ),
)


def entry(key: str) -> PageEntry:
    """Return the page of that key."""
    return next(page for page in PAGES if page.key == key)


def page(key: str) -> Page:
    """Return a page as Streamlit wants it, for the menu, links and switches alike.

    The path is absolute: beside the entry script a `pages/` folder would be taken for the old
    automatic menu.
    """
    found = entry(key)
    return st.Page(
        ROOT / "pages" / f"{key}.py",
        title=found.title,
        icon=found.icon,
        url_path=key,
        default=key == PAGES[0].key,
    )

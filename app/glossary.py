"""The tooltips: one sentence per term, kept in `assets/glossary.toml`."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

GLOSSARY = Path(__file__).resolve().parents[1] / "assets" / "glossary.toml"


@cache
def terms() -> dict[str, str]:
    """Return term -> sentence."""
    with GLOSSARY.open("rb") as file:
        return {key: str(value) for key, value in tomllib.load(file)["terms"].items()}


def tip(term: str) -> str:
    """Return the sentence of a term; a term without one is a bug that a test catches."""
    return terms()[term]

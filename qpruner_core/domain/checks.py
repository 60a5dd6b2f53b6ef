"""How values refuse what a person asked for: found, then what is needed."""

from __future__ import annotations

from qpruner_core.errors import BadInputError


def is_index(text: str) -> bool:
    """Whether a text is an index, from 0, as it is looked up: plain digits, no zeros before."""
    return text.isascii() and text.isdecimal() and (text == "0" or not text.startswith("0"))


def require(holds: bool, found: str, needed: str) -> None:
    """Refuse a value that does not fit.

    Args:
        holds: Whether it fits.
        found: What was found, without a full stop.
        needed: What is needed, as a sentence.

    Raises:
        BadInputError: It does not fit.
    """
    if not holds:
        raise BadInputError(f"{found}. {needed}")

"""A person's own text, read from disk before anything is computed: UTF-8, one document a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qpruner_core.domain.footprint import format_bytes
from qpruner_core.errors import BadInputError, DataTooShortError

MAX_TEXT_BYTES = 2**29
"""Texts are read whole: larger files are refused by their size. Recovery trains on less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCard:
    """What a text file holds."""

    n_documents: int
    """Lines that are not empty; >= 1."""
    n_characters: int
    """In all of them; >= 1."""
    first_line: str
    """The first document, whole."""


def examine_text(path: str | Path) -> TextCard:
    """Return what a text file holds.

    Raises:
        BadInputError: It is missing or not UTF-8.
        DataTooShortError: It holds no document.
    """
    documents = read_documents(path)
    return TextCard(
        n_documents=len(documents),
        n_characters=sum(map(len, documents)),
        first_line=documents[0],
    )


def read_documents(path: str | Path) -> tuple[str, ...]:
    """Return the lines of a text file that are not empty, without the space around them.

    Raises:
        BadInputError: It is missing or not UTF-8.
        DataTooShortError: It holds no document.
    """
    text = read_utf8(path, "text")
    documents = tuple(stripped for line in text.split("\n") if (stripped := line.strip()))
    if not documents:
        raise DataTooShortError(
            f"The text {str(path)!r} is {Path(path).expanduser().stat().st_size} bytes long and "
            f"holds no document. Give a file with one document per line."
        )
    return documents


def read_utf8(path: str | Path, kind: str) -> str:
    """Return the content of a file, without a byte order mark.

    Args:
        path: Of the file; ``~`` is the person's home.
        kind: What the file is called where it is refused, such as ``text``.

    Raises:
        BadInputError: It is missing, larger than `MAX_TEXT_BYTES`, cannot be read, or is not
            UTF-8; the line is named.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise BadInputError(
            f"The {kind} {str(path)!r} is not a file that exists. Give the path of a UTF-8 file."
        )
    try:
        size = file.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise BadInputError(
                f"The {kind} {str(path)!r} is {format_bytes(size)} large; up to "
                f"{format_bytes(MAX_TEXT_BYTES)} is read. Give a part of it."
            )
        content = file.read_bytes()
    except OSError as error:
        raise BadInputError(
            f"The {kind} {str(path)!r} cannot be read ({error.strerror}). Allow reading it, or "
            f"give another file."
        ) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInputError(
            f"The {kind} {str(path)!r} is not UTF-8: byte {error.start}, in line {line}. Save the "
            f"file as UTF-8."
        ) from error

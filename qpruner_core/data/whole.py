"""A text as it stands, to be read from beginning to end."""

from __future__ import annotations

from pathlib import Path

from qpruner_core.data.texts import read_wikitext
from qpruner_core.errors import BadInputError


def whole_text(source: str) -> str:
    """Return all of a text as one.

    Args:
        source: ``"wikitext2"`` for its test split, rows joined by blank lines as the field does,
            or the path of a UTF-8 file, unchanged.

    Raises:
        BadInputError: There is no such file, or it is not UTF-8.
        HubUnreachableError: ``wikitext2`` is not cached and the hub does not answer.
    """
    if source == "wikitext2":
        return "\n\n".join(read_wikitext("test"))
    path = Path(source).expanduser()
    if not path.is_file():
        raise BadInputError(
            f"The text {source!r} is not a file that exists. Give 'wikitext2' or the path of a "
            f"UTF-8 text file."
        )
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInputError(
            f"The text {source!r} is not UTF-8: byte {error.start}, in line {line}. Save the file "
            f"as UTF-8."
        ) from error

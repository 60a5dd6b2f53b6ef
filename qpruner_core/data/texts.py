"""Where text comes from, and which part of a source each use may see.

A *source* is a list of documents. Uses that name the same source get disjoint stretches of it by
position, so that nothing is ever evaluated on what it was trained or calibrated on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qpruner_core.errors import BadInputError, DataTooShortError
from qpruner_core.inspection import hub
from qpruner_core.inspection.sources import WIKITEXT, place_of
from qpruner_core.inspection.texts import read_documents

USES = ("calibration", "training", "heldout")
"""What text is used for; in this order along a shared source."""
SHARES: Mapping[str, int] = {"calibration": 15, "training": 70, "heldout": 15}
"""Parts of a shared source, relative to those of the uses that share it."""

_WIKITEXT_FILES = ("Salesforce/wikitext", "wikitext-2-raw-v1/{split}-00000-of-00001.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The documents that one use may see."""

    source: str
    """What the person asked for."""
    documents: tuple[str, ...]
    """In file order; none empty."""


def read_texts(sources: Mapping[str, str], uses: Sequence[str] = USES) -> dict[str, Text]:
    """Return use -> text for use -> source.

    Args:
        sources: For each of `USES` one of ``"demo"``, ``"wikitext2"``, or the path of a UTF-8 file
            whose every line is a document.
        uses: Those that are wanted; the others have their share of a common source all the same.

    Raises:
        BadInputError: A source is unknown, missing or not UTF-8.
        DataTooShortError: A source holds no text, or fewer documents than uses that share it.
        HubUnreachableError: ``wikitext2`` is not cached and the hub does not answer.
    """
    places = {use: place_of(use, sources[use]) for use in USES}
    texts = {}
    for use in uses:
        place = places[use]
        sharing = [other for other in USES if places[other] == place]
        documents = _share(_READERS[place.kind](place.name), use, sharing, sources[use])
        if place.kind == WIKITEXT:
            # The field reads a whole split as one text with blank lines between its rows.
            documents = ("\n\n".join(documents),)
        texts[use] = Text(source=sources[use], documents=documents)
    return texts


def _share(
    documents: tuple[str, ...], use: str, sharing: list[str], source: str
) -> tuple[str, ...]:
    """Return the stretch of a source that belongs to one of the uses that share it."""
    if len(documents) < len(sharing):
        raise DataTooShortError(
            f"The text {source!r} holds {len(documents)} documents (lines that are not empty), "
            f"but serves {' and '.join(sharing)}, which never share a document. Give at least "
            f"{len(sharing)} lines, or a file for each."
        )
    total = sum(SHARES[other] for other in sharing)
    before = sum(SHARES[other] for other in sharing[: sharing.index(use)])
    spare = len(documents) - len(sharing)
    first = spare * before // total + sharing.index(use)
    last = spare * (before + SHARES[use]) // total + sharing.index(use) + 1
    return documents[first:last]


def _read_file(name: str) -> tuple[str, ...]:
    path = Path(name)
    if not path.is_file():
        raise BadInputError(
            f"The demo text {name!r} is missing. Run from a complete checkout, or point the "
            "environment variable QPRUNER_DEMO to its folder."
        )
    return read_documents(path)


def read_wikitext(split: str) -> tuple[str, ...]:
    """Return the rows of a split of WikiText-2, empty ones among them.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.

    Raises:
        HubUnreachableError: It is not cached and the hub does not answer.
    """
    import pandas as pd  # noqa: PLC0415  slow to import, and needed for this source alone

    repo, pattern = _WIKITEXT_FILES
    rows = pd.read_parquet(hub.dataset_file(repo, pattern.format(split=split)), columns=["text"])
    return tuple(str(row) for row in rows["text"])


_READERS = {"file": _read_file, WIKITEXT: read_wikitext}

"""What a run's worker reported, line by line."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from qpruner_core.domain.progress import Progress
from qpruner_core.errors import BadInputError
from qpruner_core.store.codec import from_json, to_json
from qpruner_core.store.files import append_line, last_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One report with the time it was made."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    at: str
    """ISO 8601, UTC, by the clock of the worker's machine."""
    progress: Progress


def now() -> str:
    """Return the present time as records and events hold it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def append(path: Path, progress: Progress) -> Event:
    """Append a report to a file of events."""
    event = Event(at=now(), progress=progress)
    append_line(path, to_json(event))
    return event


def read(path: Path, last: int | None = None) -> list[Event]:
    """Return the last events of a file, oldest first; a line torn by a crash is left out."""
    found = []
    # One line more than asked for, as the last may be torn.
    for line in last_lines(path, None if last is None else last + 1):
        with suppress(BadInputError):
            found.append(from_json(Event, line))
    return found if last is None else found[len(found) - min(last, len(found)) :]

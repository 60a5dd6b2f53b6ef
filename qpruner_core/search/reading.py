"""Stored trials for whoever only looks: plain SQL, without Optuna, and nothing is created or
changed.

Ten thousand trials take Optuna nine seconds and these queries half a second; a `TrialReader` kept
between reruns fetches only what had not finished when it last looked.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Protocol
from urllib.parse import quote

from qpruner_core.domain.record import Trial
from qpruner_core.search.rows import LEVELS, METRICS, OWNER, PLAN, REASON, SPACE, StoredSpace

_STUDY = (
    "SELECT s.study_id, a.value_json FROM studies s JOIN study_user_attributes a "
    "ON a.study_id = s.study_id AND a.key = :key WHERE s.study_name = :name"
)
_STATES = "SELECT number, state FROM trials WHERE study_id = :study AND number >= :first"
_ATTRIBUTES = (
    "SELECT t.number, a.key, a.value_json FROM trials t JOIN trial_user_attributes a "
    "ON a.trial_id = t.trial_id WHERE t.study_id = :study AND t.number BETWEEN :first AND :last "
    "AND a.key IN (:plan, :metrics, :reason, :owner, :levels)"
)
_KEYS = {
    "plan": PLAN,
    "metrics": METRICS,
    "reason": REASON,
    "owner": OWNER,
    "levels": LEVELS,
}


_LAST_TABLE = "alembic_version"
"""Optuna makes this table after all others: where it is missing, some others may be too."""


class _Query(Protocol):
    def __call__(self, sql: str, values: dict[str, Any]) -> Sequence[Any]: ...


def storage_url(storage: str) -> str:
    """Return the SQLAlchemy URL of a SQLite path or URL; PostgreSQL goes through psycopg 3."""
    if "://" not in storage:
        return f"sqlite:///{Path(storage).absolute()}"
    scheme, _, rest = storage.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in {"postgresql", "postgres"} else storage


def sqlite_path(url: str) -> Path | None:
    """Return the file behind a SQLite URL, None for any other database."""
    scheme, _, rest = url.partition(":///")
    return Path(rest) if scheme.split("+")[0] == "sqlite" else None


class TrialReader:
    """Reads one study again and again; finished trials, which never change, are read once.

    Several threads may share one.

    Args:
        storage: Path of a SQLite file, or an SQLAlchemy URL.
        name: Name of the study.
    """

    def __init__(self, storage: str, name: str) -> None:
        self._url = storage_url(storage)
        self._name = name
        self._lock = Lock()
        self._study: tuple[int, str] | None = None
        self._known: dict[int, Trial] = {}
        self._first = 0  # all numbers below it are known and finished
        self._told: tuple[Trial, ...] = ()

    def read(self) -> tuple[Trial, ...]:
        """Return all trials by number; empty when the database or the study is not there yet.

        While nothing has changed it is the same tuple, so that whoever makes something of it can
        tell by identity.
        """
        with self._lock, _query(self._url) as query:
            rows = query(_STUDY, {"name": self._name, "key": SPACE}) if query else ()
            study = (int(rows[0][0]), str(rows[0][1])) if rows else None
            if study != self._study:
                self._forget(study)
            if query is not None and study is not None and self._take(query, study):
                self._told = tuple(self._known[number] for number in sorted(self._known))
            return self._told

    def _forget(self, study: tuple[int, str] | None) -> None:
        self._study, self._known, self._first, self._told = study, {}, 0, ()

    def _take(self, query: _Query, study: tuple[int, str]) -> bool:
        """Take in the trials that had not finished; return whether anything is new."""
        values = {"study": study[0], "first": self._first}
        # States before attributes: attributes are written first.
        open_states = {n: s for n, s in query(_STATES, values) if not self._is_finished(n)}
        space = StoredSpace.read(json.loads(study[1]))
        changed = False
        for number, attributes in self._attributes(query, study[0], open_states):
            if PLAN in attributes:
                trial = space.trial(number, open_states[number], attributes)
                changed |= trial != self._known.get(number)
                self._known[number] = trial
        while self._is_finished(self._first):
            self._first += 1
        return changed

    def _attributes(
        self, query: _Query, study: int, numbers: Collection[int]
    ) -> Iterator[tuple[int, dict[str, object]]]:
        """Give number and attributes of those trials, in runs of neighbours: one that runs for
        hours, or was left behind, must not have all after it read again.
        """
        for first, last in _neighbours(numbers):
            found: dict[int, dict[str, object]] = {n: {} for n in range(first, last + 1)}
            values = {"study": study, "first": first, "last": last, **_KEYS}
            for number, key, text in query(_ATTRIBUTES, values):
                found[number][key] = json.loads(text)
            yield from found.items()

    def _is_finished(self, number: int) -> bool:
        return number in self._known and self._known[number].state != "running"


def _neighbours(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return first and last of every run of consecutive numbers, ascending."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


@contextmanager
def _query(url: str) -> Iterator[_Query | None]:
    """Give a function that runs a query, or None where the database holds no studies."""
    path = sqlite_path(url)
    if path is None:
        yield from _postgres(url)
    elif not path.is_file():
        yield None
    else:
        address = f"file:{quote(str(path))}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=10)) as connection:
            tables = connection.execute(
                "SELECT 1 FROM sqlite_master WHERE name = ?", [_LAST_TABLE]
            )
            known = tables.fetchone() is not None
            yield (
                (lambda sql, values: connection.execute(sql, values).fetchall()) if known else None
            )


def _postgres(url: str) -> Iterator[_Query | None]:
    import sqlalchemy  # noqa: PLC0415 - only where the studies lie in PostgreSQL

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        known = sqlalchemy.inspect(connection).has_table(_LAST_TABLE)
        yield (
            (lambda sql, values: connection.execute(sqlalchemy.text(sql), values).fetchall())
            if known
            else None
        )

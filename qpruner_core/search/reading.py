"""Stored trials for whoever only looks: plain SQL, without Optuna, and nothing is created or
changed.

Ten thousand trials take Optuna nine seconds and these queries a fraction of one; a `TrialReader`
kept between reruns fetches only what has not finished when it last looked.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
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
    "ON a.trial_id = t.trial_id WHERE t.study_id = :study AND t.number >= :first "
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

    Args:
        storage: Path of a SQLite file, or an SQLAlchemy URL.
        name: Name of the study.
    """

    def __init__(self, storage: str, name: str) -> None:
        self._url = storage_url(storage)
        self._name = name
        self._study: tuple[int, str] | None = None
        self._finished: list[Trial] = []  # numbers 0, 1, 2, ... without a gap

    def read(self) -> tuple[Trial, ...]:
        """Return all trials by number; empty when the database or the study is not there yet."""
        with _query(self._url) as query:
            rows = query(_STUDY, {"name": self._name, "key": SPACE}) if query else ()
            study = (int(rows[0][0]), str(rows[0][1])) if rows else None
            if study != self._study:
                self._study, self._finished = study, []
            if query is None or study is None:
                return ()
            new = self._new(query, study)
        finished = next((i for i, t in enumerate(new) if t.state == "running"), len(new))
        self._finished += new[:finished]
        return (*self._finished, *new[finished:])

    def _new(self, query: _Query, study: tuple[int, str]) -> list[Trial]:
        """Return the trials from the first unfinished one on."""
        values = {"study": study[0], "first": len(self._finished)}
        states = query(_STATES, values)  # before the attributes: these are written first
        attributes: dict[int, dict[str, object]] = {number: {} for number, _ in states}
        for number, key, text in query(_ATTRIBUTES, {**values, **_KEYS}):
            if number in attributes:
                attributes[number][key] = json.loads(text)
        space = StoredSpace.read(json.loads(study[1]))
        return [
            space.trial(number, state, attributes[number])
            for number, state in sorted(states)
            if PLAN in attributes[number]
        ]


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

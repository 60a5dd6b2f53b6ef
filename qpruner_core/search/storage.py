"""Where studies are kept, and whose turn it is to change one.

Several workers may serve one study. Asking reads what is taken and takes something: workers do it
one at a time, held by the operating system (a lock file beside the SQLite file) or by PostgreSQL
(an advisory lock), so that a killed worker never leaves a lock behind.
"""

from __future__ import annotations

import fcntl
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.pool import NullPool

from qpruner_core.search.reading import sqlite_path, storage_url

TIMEOUT_SECONDS = 60
"""How long a worker waits for another one's write; the default of 5 failed on slow disks."""


class Turn:
    """The right to change the studies of one storage; one holder at a time, across processes and
    threads.
    """

    def __init__(self, url: str) -> None:
        path = sqlite_path(url)
        self._lock_file = None if path is None else path.with_name(f"{path.name}.lock")
        self._engine = sqlalchemy.create_engine(url, poolclass=NullPool) if path is None else None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for the turn, hold it in the block, give it back."""
        if self._lock_file is not None:
            with self._lock_file.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
                yield
        elif self._engine is not None:
            key = {"key": zlib.crc32(b"qpruner studies")}
            with self._engine.connect() as connection:  # released when the connection is closed
                connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), key)
                yield


def open_storage(storage: str) -> tuple[RDBStorage, Turn]:
    """Return Optuna's storage and the turn over it; tables are created on first use.

    Args:
        storage: Path of a SQLite file, or an SQLAlchemy URL (SQLite or PostgreSQL).
    """
    url = storage_url(storage)
    path = sqlite_path(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    turn = Turn(url)
    with turn.taken():
        if path is not None:
            _write_ahead(path)
            return RDBStorage(url, {"connect_args": {"timeout": TIMEOUT_SECONDS}}), turn
        return RDBStorage(url, {"pool_pre_ping": True}), turn


def _write_ahead(path: Path) -> None:
    """Let readers read while a worker writes; the mode stays with the file."""
    with closing(sqlite3.connect(path, timeout=TIMEOUT_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")

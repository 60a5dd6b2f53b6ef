"""Where Optuna keeps the studies of all runs; a study's name begins with its run's id."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qpruner_core.store.home import database_url


def study_url(store_home: Path, database: str | None = None) -> str:
    """Return the storage URL: the PostgreSQL of the jobs if they use one, else SQLite at home.

    Args:
        store_home: The home folder.
        database: URL of the job database; ``QPRUNER_DATABASE`` or SQLite for None.
    """
    shared = database_url(store_home, database)
    if not shared.startswith("postgresql"):
        return f"sqlite:///{store_home / 'studies.db'}"
    # The driver that the job engine brings along.
    return f"postgresql+psycopg://{shared.partition('://')[2]}"


def delete_studies(store_home: Path, run_id: str, database: str | None = None) -> list[str]:
    """Delete all studies of a run and return their names; the database as in `study_url`."""
    url = study_url(store_home, database)
    if url.startswith("sqlite") and not (store_home / "studies.db").exists():
        return []
    # The lock that workers hold while they change studies; PostgreSQL needs none for this.
    with _locked(store_home / "studies.db.lock"):
        return _delete(url, run_id)


def _delete(url: str, run_id: str) -> list[str]:
    import optuna  # noqa: PLC0415 - half a second that only deleting needs

    storage = optuna.storages.RDBStorage(url, engine_kwargs=_engine(url))
    try:
        names = [
            name
            for name in optuna.get_all_study_names(storage)
            if name == run_id or name.startswith(f"{run_id}-")
        ]
        for name in names:
            optuna.delete_study(study_name=name, storage=storage)
    finally:
        storage.engine.dispose()
    return names


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        yield


def _engine(url: str) -> dict[str, object]:
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": 60}}
    return {"pool_pre_ping": True}

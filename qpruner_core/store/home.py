"""Where runs live, and which folders a path from the browser may name."""

from __future__ import annotations

import os
from pathlib import Path

import qpruner_core
from qpruner_core.errors import BadInputError


def home() -> Path:
    """Return the home folder, ``QPRUNER_HOME`` or ``~/.qpruner``: absolute, perhaps not there."""
    named = os.environ.get("QPRUNER_HOME")
    folder = Path(named).expanduser() if named else Path.home() / ".qpruner"
    return folder.absolute()


def demo_folder() -> Path:
    """Return the folder of the demo: ``QPRUNER_DEMO``, else the one that comes with the source."""
    named = os.environ.get("QPRUNER_DEMO")
    return Path(named) if named else Path(qpruner_core.__file__).parents[1] / "assets" / "demo"


def allowed_folders(store_home: Path | None = None) -> tuple[Path, ...]:
    """Return the folders that a path from the browser may lie in, links resolved.

    They are the home folder, the demo and those in ``QPRUNER_FOLDERS`` (separated as in ``PATH``).
    """
    named = os.environ.get("QPRUNER_FOLDERS", "").split(os.pathsep)
    extra = [Path(name).expanduser() for name in named if name]
    return tuple(folder.resolve() for folder in (store_home or home(), demo_folder(), *extra))


def check_allowed(path: Path) -> Path:
    """Return the path with links resolved if the server may read or write there.

    Raises:
        BadInputError: It lies outside the allowed folders.
    """
    found = path.expanduser().resolve()
    allowed = allowed_folders()
    if not any(found.is_relative_to(folder) for folder in allowed):
        raise BadInputError(
            f"The path {found} lies outside the folders this server may use: "
            f"{', '.join(str(folder) for folder in allowed)}. Put the files into one of these, or "
            f"start the app with the environment variable QPRUNER_FOLDERS naming their folder."
        )
    return found


def database_url(store_home: Path, given: str | None = None) -> str:
    """Return the URL of the job database: given, or ``QPRUNER_DATABASE``, or SQLite here."""
    return given or os.environ.get("QPRUNER_DATABASE") or f"sqlite:///{store_home / 'jobs.db'}"

"""Opens studies in optuna-dashboard: one child process per storage, on 127.0.0.1 alone, ended
with the app.
"""

from __future__ import annotations

import logging
import selectors
import subprocess
import sys
import weakref
from threading import Lock
from typing import IO

import streamlit as st

from app.navigation import ROOT
from qpruner_core.errors import DashboardError
from qpruner_core.search.reading import sqlite_path, storage_url

COMMAND: list[str] = [sys.executable, "-m", "app.dashboard_server"]
"""Arguments that start the child."""
START_SECONDS = 60.0
"""How long a child may take to come up; it imports Optuna, on a busy machine."""
ANSWER_SECONDS = 20.0
"""How long it may take to look a study up."""

_LOG = logging.getLogger(__name__)


class _Child:
    """optuna-dashboard over one storage; ends when nothing holds it any more."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for the app, whose end then ends the child
        )
        self._end = weakref.finalize(self, _end, self._process)
        address = self._ask(url, START_SECONDS)
        if not address:
            self._end()
            raise DashboardError(
                "optuna-dashboard did not start; the server's log says why. It needs the package "
                "optuna-dashboard and a storage that can be reached: check both and try again."
            )
        self.address = address

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still serves."""
        return self._process.poll() is None

    def number_of(self, study: str) -> str | None:
        """Return the number of a study in the dashboard's addresses; empty where there is no such
        study, None where the child does not answer.
        """
        return self._ask(study, ANSWER_SECONDS)

    def end(self) -> None:
        """Stop it."""
        self._end()

    def _ask(self, line: str, seconds: float) -> str | None:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None or not self.is_alive:
            return None
        try:
            stdin.write(f"{line}\n")
            stdin.flush()
        except BrokenPipeError:
            return None
        return _line(stdout, seconds)


class Dashboards:
    """One child per storage that somebody looks at; safe to call from several sessions."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._children: dict[str, _Child] = {}

    def open(self, storage: str, study: str) -> str:
        """Return the address of a study, after starting a child where none serves its storage.

        Args:
            storage: Path of a SQLite file, or an SQLAlchemy URL.
            study: Its name.

        Raises:
            DashboardError: The child does not start, or there is no such study.
        """
        url = storage_url(storage)
        path = sqlite_path(url)
        if path is not None and not path.is_file():
            raise DashboardError(
                "No search has begun in this home folder, so there is no study to open. Start one "
                "on the Search page."
            )
        with self._lock:
            child = self._children.get(url)
            number = child.number_of(study) if child is not None else None
            if child is None or number is None:  # none yet, or one that died
                _LOG.info("starting optuna-dashboard")
                child = self._children[url] = _Child(url)
                number = child.number_of(study)
        if not number:
            raise DashboardError(
                f"The storage holds no study {study!r}; it was deleted or belongs to a search "
                f"with other settings. Start the search again to make it."
            )
        return f"{child.address}/dashboard/studies/{number}"

    def is_open(self, storage: str) -> bool:
        """Whether a child serves a storage."""
        child = self._children.get(storage_url(storage))
        return child is not None and child.is_alive

    def processes(self) -> list[int]:
        """Return the ids of the children that live."""
        return [child.pid for child in self._children.values() if child.is_alive]

    def close(self) -> None:
        """End all children."""
        with self._lock:
            for child in self._children.values():
                child.end()
            self._children.clear()


@st.cache_resource(show_spinner=False)
def dashboards() -> Dashboards:
    """Return the dashboards of this server."""
    return Dashboards()


def _end(process: subprocess.Popen[str]) -> None:
    """Close the child's input, upon which it ends; take it down where it does not."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _line(stream: IO[str], seconds: float) -> str | None:
    """Return the next line, None when none comes in time or the stream ends."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(stream, selectors.EVENT_READ)
        if not waiting.select(seconds):
            return None
    line = stream.readline()
    return line.rstrip("\n") if line else None

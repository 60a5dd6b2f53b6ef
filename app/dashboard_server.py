"""Serves optuna-dashboard for one storage on a free port of 127.0.0.1, as a child of the app.

It talks in lines. In: the storage's URL first (a URL may hold a password, which arguments would
show to every user of the machine), then names of studies. Out: its address, then for every name
the number that the dashboard knows the study by, or nothing where there is no such study. It ends
when its input ends, so that it never outlives the app, however that dies.
"""

from __future__ import annotations

import sys
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TextIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard
from optuna.storages import RDBStorage

from qpruner_core.search.storage import TIMEOUT_SECONDS

HOST = "127.0.0.1"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the app's log is no place for every picture that a browser fetches."""


def open_storage(url: str) -> RDBStorage:
    """Return the storage as it is found; no table is made and no mode changed."""
    if url.startswith("sqlite"):
        return RDBStorage(url, {"connect_args": {"timeout": TIMEOUT_SECONDS}})
    return RDBStorage(url, {"pool_pre_ping": True})


def main(asked: TextIO, told: TextIO) -> None:
    """Serve until the input ends."""
    storage = open_storage(asked.readline().strip())
    served = optuna_dashboard.wsgi(storage)
    # Port 0: the system picks a free one, which no other program can take in between.
    with make_server(HOST, 0, served, server_class=_Server, handler_class=_Quiet) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        _tell(told, f"http://{HOST}:{server.server_port}")
        for line in iter(asked.readline, ""):
            _tell(told, _number(storage, line.rstrip("\n")))
        server.shutdown()


def _number(storage: RDBStorage, study: str) -> str:
    try:
        return str(storage.get_study_id_from_name(study))
    except KeyError:
        return ""


def _tell(told: TextIO, line: str) -> None:
    told.write(f"{line}\n")
    told.flush()


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)

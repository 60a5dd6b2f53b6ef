"""What `make run` starts: workers and the app, watched until Ctrl-C; then nothing is left.

Each child leads a process group of its own, so that what it started goes with it, and Ctrl-C
reaches the children only through this process, in order.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag
from time import monotonic

from app import crew
from qpruner_core.errors import BadInputError, NotReadyError, QPrunerError
from qpruner_core.store.home import home

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
SERVER_COMMAND = (sys.executable, "-m", "app.server")
"""Starts the app; address and port reach it through the environment."""
WORKER_COMMAND = (sys.executable, "-m", "qpruner_core.worker", "--with-parent")
FIXABLE = 2
"""Exit code of a worker that has said why it cannot run; starting it again is of no use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for what; seconds."""

    answer: float = 90.0
    """For the app to answer its first request."""
    ending: float = 8.0
    """For a child to end by itself before it is killed."""
    look: float = 0.25
    """Between two looks at the children."""
    quick_death: float = 20.0
    """A worker that lived shorter died quickly."""
    first_pause: float = 1.0
    """Before a dead worker is started again; doubles with every quick death."""
    quick_deaths: int = 5
    """After that many in a row the worker is given up."""


class Child:
    """A child process with everything that it starts in turn."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.started_at = monotonic()
        self._process = subprocess.Popen(  # noqa: S603 - commands of this module or of a test
            command, env={**os.environ, **environment}, cwd=ROOT, start_new_session=True
        )

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it lives."""
        return self._process.poll()

    def stop(self, patience: float) -> None:
        """Ask its whole group to end, and kill what has not ended in time."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        # Also when the child itself has ended: its own children may not have.
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            # The group is gone already.
            return


class WorkerKeeper:
    """Starts a dead worker again, with growing pauses, and gives up when that is of no use."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], patience: Patience
    ) -> None:
        self._command, self._environment, self._patience = command, environment, patience
        self._child: Child | None = Child(command, environment)
        self._quick_deaths = 0
        self._start_at: float | None = None

    def look(self) -> None:
        """See to the worker; call again and again."""
        if self._start_at is not None:
            if monotonic() >= self._start_at:
                self._start_at = None
                self._child = Child(self._command, self._environment)
        elif self._child is not None and self._child.exit_code is not None:
            self._bury(self._child, self._child.exit_code)

    def stop(self) -> None:
        """End the worker and start none again."""
        self._start_at = None
        if self._child is not None:
            self._child.stop(self._patience.ending)

    def _bury(self, child: Child, exit_code: int) -> None:
        child.stop(0.0)
        self._child = None
        if exit_code == FIXABLE:
            say("The app goes on without a worker of its own; what the worker said stands above.")
            return
        lived = monotonic() - child.started_at
        self._quick_deaths = self._quick_deaths + 1 if lived < self._patience.quick_death else 1
        if self._quick_deaths >= self._patience.quick_deaths:
            say(
                f"The worker died {self._quick_deaths} times in a row (exit code {exit_code}) and "
                f"is not started again; its messages stand above. The app goes on: runs can be "
                f"looked at, jobs wait. Run 'qpruner doctor', mend what it finds, and start again."
            )
            return
        pause = self._patience.first_pause * 2.0 ** (self._quick_deaths - 1)
        say(f"The worker ended with exit code {exit_code}; it is started again in {pause:.0f} s.")
        self._start_at = monotonic() + pause


def say(words: str) -> None:
    """Print a sentence for the person at the terminal."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def check_port(port: int) -> None:
    """Refuse a port that somebody else listens on.

    Raises:
        BadInputError: The port is taken, or may not be used.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise BadInputError(
                f"Port {port} on {HOST} cannot be used ({why}). A free port is needed: stop the "
                f"app that listens there, or name another, as in 'make run PORT={port + 1}'."
            ) from error


def answers(port: int) -> bool:
    """Whether the app answers a request."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2.0)
    try:
        connection.request("GET", "/_stcore/health")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def launch(
    port: int,
    environment: Mapping[str, str],
    stop: Flag,
    commands: Sequence[Sequence[str]] = (SERVER_COMMAND, WORKER_COMMAND),
    patience: Patience = Patience(),
) -> None:
    """Run app and workers until told to stop.

    Args:
        port: Where the app listens on the loopback.
        environment: Variables for all of them, besides those of this process.
        stop: Set by whoever wants all of them to end.
        commands: How to start the app, then every worker.
        patience: How long to wait for what.

    Raises:
        BadInputError: The port is taken.
        NotReadyError: The app ended by itself, or does not answer.
    """
    check_port(port)
    server = Child(commands[0], {**environment, **_address(port)})
    keepers = [WorkerKeeper(command, environment, patience) for command in commands[1:]]
    try:
        _wait_for_answer(server, keepers, port, stop, patience)
        while not stop.wait(patience.look):
            _look(keepers)
            if server.exit_code is not None:
                raise NotReadyError(
                    f"The app ended by itself with exit code {server.exit_code}; its messages "
                    f"stand above. Start it again, and report it if that does not help."
                )
    finally:
        for keeper in keepers:
            keeper.stop()
        server.stop(patience.ending)


def main(argv: Sequence[str] | None = None) -> int:
    """Run app and workers until Ctrl-C; return 0, or 2 when the person can fix what is wrong."""
    arguments = _parser().parse_args(argv)
    stop = Flag()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    environment = {"QPRUNER_HOME": arguments.home or str(home())}
    environment |= crew.threads(arguments.workers)
    if arguments.database:
        environment["QPRUNER_DATABASE"] = arguments.database
    try:
        named = crew.devices(arguments.device, arguments.workers)
        workers = [(*WORKER_COMMAND, "--device", device) for device in named]
        launch(arguments.port, environment, stop, (SERVER_COMMAND, *workers))
    except QPrunerError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    say("Stopped. Unfinished jobs go on when you start again.")
    return 0


def _look(keepers: Sequence[WorkerKeeper]) -> None:
    for keeper in keepers:
        keeper.look()


def _wait_for_answer(
    server: Child, keepers: Sequence[WorkerKeeper], port: int, stop: Flag, patience: Patience
) -> None:
    """Print the address once the app answers there."""
    limit = monotonic() + patience.answer
    while not stop.is_set() and server.exit_code is None:
        if answers(port):
            say(f"QPruner Studio is at http://{HOST}:{port} (Ctrl-C stops it)")
            return
        if monotonic() > limit:
            raise NotReadyError(
                f"The app does not answer on port {port} after {patience.answer:.0f} s. Look at "
                f"its messages above, and start it again."
            )
        _look(keepers)
        stop.wait(patience.look)


def _address(port: int) -> dict[str, str]:
    return {
        "STREAMLIT_SERVER_ADDRESS": HOST,
        "STREAMLIT_SERVER_PORT": str(port),
        "STREAMLIT_SERVER_HEADLESS": "true",
        "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app.launch", description="Start workers and the app on this machine."
    )
    parser.add_argument("--port", type=int, default=8501, help=f"port on {HOST}; 8501 by default")
    parser.add_argument("--home", help="home folder; QPRUNER_HOME or ~/.qpruner by default")
    parser.add_argument(
        "--database", help="URL of the job database; QPRUNER_DATABASE or SQLite in the home"
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu or cuda:<number>; one worker for each of several, as in cuda:0,cuda:1",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="workers side by side on this machine's cores, each with its part of them; 1 by "
        "default",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Which workers are alive: each holds a lock on a small file of its own for as long as it lives.

The lock goes with the process, however it ends, so nobody has to send heartbeats; and a second
worker for the same device finds it taken.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag
from typing import ClassVar

from qpruner_core.errors import BadInputError
from qpruner_core.store import events
from qpruner_core.store.codec import from_json, to_json

_TRIES = 20
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One living worker."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    """Machine and device, such as ``atlas/cpu``, or ``atlas/cpu:1`` for a second seat on it; the
    same after a restart.
    """
    pid: int
    host: str
    device: str
    """``cpu`` or the name of the CUDA card."""
    since: str
    """When it started; ISO 8601, UTC."""
    memory_bytes: int | None = None
    """Memory of the card, or main memory that the worker may use; None where it did not say."""


def worker_name(device_key: str) -> str:
    """Return the name of this machine's worker for a device such as ``cpu``, ``cpu:1`` or
    ``cuda:0``.
    """
    return f"{socket.gethostname()}/{device_key}"


@contextmanager
def registered(
    home: Path, device_key: str, device: str, memory_bytes: int | None = None
) -> Iterator[WorkerInfo]:
    """Be the worker of a device for as long as the block runs.

    Raises:
        BadInputError: This machine has a living worker for that device.
    """
    name = worker_name(device_key)
    info = WorkerInfo(
        name=name,
        pid=os.getpid(),
        host=socket.gethostname(),
        device=device,
        since=events.now(),
        memory_bytes=memory_bytes,
    )
    path = _path(home, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        if not _taken(file.fileno()):
            file.seek(0)
            raise BadInputError(
                f"A worker for {device} is already running on this machine "
                f"({_who(file.read())}). Use that one, or stop it first."
            )
        file.truncate(0)
        file.write(to_json(info).encode())
        try:
            yield info
        finally:
            # The file stays: removing it would let two processes lock two files of one name.
            file.truncate(0)


def living_workers(home: Path) -> tuple[WorkerInfo, ...]:
    """Return the workers whose lock is held, by name; files of dead ones are passed over."""
    found = []
    for path in sorted((home / "workers").glob("*.json")):
        try:
            with path.open("rb") as file:
                if _is_locked(file.fileno()):
                    found.append(from_json(WorkerInfo, file.read()))
        except BadInputError:
            # It has taken the lock, but not written its line yet.
            continue
    return tuple(found)


def is_gone(home: Path, name: str) -> bool:
    """Whether a worker of this home has ended; False of one that was never seen here."""
    try:
        with _path(home, name).open("rb") as file:
            return not _is_locked(file.fileno())
    except FileNotFoundError:
        return False


@contextmanager
def kept_gone(home: Path, name: str) -> Iterator[bool]:
    """Keep a worker that has ended from coming back for as long as the block runs.

    Whoever takes over what it left needs this: a worker has the same name after a restart, and
    might have taken its work up again itself. It waits about a second for us, so be quick.

    Yields:
        Whether it has ended; False of one that lives or was never seen here.
    """
    try:
        file = _path(home, name).open("rb")
    except FileNotFoundError:
        yield False
        return
    with file:
        has_ended = False
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released when the file is closed
            has_ended = True
        yield has_ended


def _path(home: Path, name: str) -> Path:
    return home / "workers" / f"{re.sub(r'[^A-Za-z0-9.-]', '-', name)}.json"


def _taken(descriptor: int) -> bool:
    """Try to take the lock, for about a second: someone who looks holds it for a moment."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Flag().wait(_PAUSE_SECONDS)
        else:
            return True
    return False


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _who(content: bytes) -> str:
    try:
        return f"process {from_json(WorkerInfo, content).pid}"
    except BadInputError:
        return "it is just starting"

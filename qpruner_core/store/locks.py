"""One process at a time writes a run's record: whoever does holds a lock on a file in its folder.

Workers that measure trials of one search write only the study, so they share the lock among
themselves; whoever wants it alone waits for the trials under way and holds up new ones. A lock
goes with its process, however it ends, so none is ever left behind.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qpruner_core.errors import NotReadyError


@contextmanager
def held(path: Path, what: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock for as long as the block runs; the file is made, and stays.

    Args:
        path: The lock file.
        what: What it guards, for the sentence, such as ``run 20261124-101500-demo-3f2a``.
        shared: Hold it together with others that share it; refused while somebody `is_next`.

    Raises:
        NotReadyError: Somebody else holds it; nothing is waited for.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            if shared:
                _pass_turnstile(path)
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise NotReadyError(
                f"The {what} is being written by {file.read() or 'another process'}, and has one "
                f"writer at a time. Wait until that is done, or stop its job on the Jobs page."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


@contextmanager
def is_next(path: Path) -> Iterator[bool]:
    """Let nobody share a lock anew for as long as the block runs; those who do may finish.

    Without it, somebody who wants the lock alone might never find it free between the trials of
    several workers.

    Yields:
        Whether it is so; False where somebody else is next already, or passes at this moment.
    """
    with _turnstile(path).open("a") as file:
        is_first = False
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_first = True
        yield is_first


def _pass_turnstile(path: Path) -> None:
    with _turnstile(path).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _turnstile(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")

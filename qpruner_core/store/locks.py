"""One process at a time writes a run: whoever does holds a lock on a file in its folder.

The lock goes with the process, however it ends, so none is ever left behind.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qpruner_core.errors import NotReadyError


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock for as long as the block runs; the file is made, and stays.

    Args:
        path: The lock file.
        what: What it guards, for the sentence, such as ``run 20261124-101500-demo-3f2a``.

    Raises:
        NotReadyError: Somebody else holds it; nothing is waited for.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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

"""How files are written so that a reader never sees half of one, and how logs are read."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qpruner_core.errors import StorageFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_BLOCK_BYTES = 1 << 16


@contextmanager
def disk_watched(path: Path) -> Iterator[None]:
    """Turn a full disk into a sentence.

    Raises:
        StorageFullError: The disk or the quota does not hold what is written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFullError(
            f"The disk is full: {path} could not be written; what was there before is "
            f"unchanged. Free some space (deleting runs on the Jobs page helps) and start again."
        ) from error


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by new content in one stroke; its folder must be there.

    Raises:
        StorageFullError: The disk does not hold it; the old content stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_watched(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Append one line; a line torn by a crash before is ended first.

    Several processes may append to one file: they do so one after the other.

    Raises:
        StorageFullError: The disk does not hold it.
    """
    content = line.encode() + b"\n"
    with disk_watched(path), path.open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                content = b"\n" + content
        file.write(content)


def last_lines(path: Path, count: int | None = None) -> list[str]:
    """Return the last lines of a text file, oldest first; all for None, none if it is missing."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return []
    with file:
        if count is None:
            return file.read().decode(errors="replace").splitlines()
        position, content = file.seek(0, os.SEEK_END), b""
        while position and content.count(b"\n") <= count:
            step = min(_BLOCK_BYTES, position)
            position -= step
            file.seek(position)
            content = file.read(step) + content
    lines = content.decode(errors="replace").splitlines()
    return lines[-count:] if count else []


def link_tree(source: Path, target: Path) -> None:
    """Put a file or folder at a second place by hard links, or by copies where those fail."""
    if source.is_dir():
        target.mkdir(parents=True)
        for entry in source.iterdir():
            link_tree(entry, target / entry.name)
        return
    try:
        target.hardlink_to(source)
    except OSError:
        with disk_watched(target):
            target.write_bytes(source.read_bytes())


def link_whole(source: Path, target: Path) -> None:
    """Put the files of a folder at a second place, less those that are only half written.

    Somebody may be replacing them meanwhile: what is gone by then is left out.
    """
    for path in source.glob("[!.]*"):
        target.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            link_tree(path, target / path.name)


def size_bytes(folder: Path) -> int:
    """Return the bytes of all files under a folder; a file linked twice in it counts once."""
    seen: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            # The worker may replace or remove a file while we look.
            with suppress(FileNotFoundError):
                found = os.lstat(os.path.join(parent, name))
                seen[(found.st_dev, found.st_ino)] = found.st_size
    return sum(seen.values())

"""A folder appears whole or not at all: it is filled under another name beside its place, then
renamed.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qpruner_core.domain.footprint import format_bytes
from qpruner_core.errors import OutputExistsError, StorageFullError

SLACK_BYTES = 4 * 2**20
"""Room for config, tokenizer and model card beside the weights."""


@contextmanager
def new_folder(folder: Path, needed_bytes: int) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes its name when the block ends without an error.

    Args:
        folder: The name it will carry.
        needed_bytes: Bytes that will be written.

    Raises:
        OutputExistsError: The name is taken.
        StorageFullError: The disk is too full before or while writing; nothing is left behind.
    """
    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_space(folder.parent, needed_bytes)
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        with full_disk_as_sentence(folder.parent, needed_bytes):
            yield partial
        refuse_existing(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_space(parent: Path, needed_bytes: int) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        StorageFullError: Fewer bytes are free than needed.
    """
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise _storage_full(parent, needed_bytes, free)


@contextmanager
def full_disk_as_sentence(parent: Path, needed_bytes: int) -> Iterator[None]:
    """Turn "no space left" inside the block into a sentence; every other error passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _storage_full(parent, needed_bytes, shutil.disk_usage(parent).free) from error


def hashes(folder: Path) -> dict[str, dict[str, str | int]]:
    """Return path inside the folder -> its SHA-256 and its bytes, for every file, sorted."""
    found: dict[str, dict[str, str | int]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            name = path.relative_to(folder).as_posix()
            found[name] = {"sha256": digest, "bytes": path.stat().st_size}
    return found


def refuse_existing(folder: Path) -> None:
    """Refuse a name that is taken.

    Raises:
        OutputExistsError: There is something of that name.
    """
    if folder.exists() or folder.is_symlink():
        raise OutputExistsError(
            f"The export would be written to {folder}, which is there already; nothing is "
            f"overwritten. Choose another folder, or move that one away."
        )


def _storage_full(parent: Path, needed: int, free: int) -> StorageFullError:
    return StorageFullError(
        f"The export needs about {format_bytes(needed)}, but {parent} has {format_bytes(free)} "
        f"free. Free {format_bytes(max(needed - free, 0))} or more, or choose a folder on another "
        f"disk."
    )

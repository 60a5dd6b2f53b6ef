"""Arrays of a run as npz files that carry the SHA-256 of their content in their name."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qpruner_core.errors import BadInputError, NotReadyError
from qpruner_core.store.files import write_whole
from qpruner_core.store.names import check_plain

_NAME = re.compile(r"(?P<stem>[A-Za-z0-9][A-Za-z0-9_.-]*)-(?P<sha>[0-9a-f]{64})\.npz")


def write_arrays(folder: Path, stem: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays into a folder and return the file name; equal arrays give equal names.

    Raises:
        StorageFullError: The disk does not hold them.
    """
    content = _packed(arrays)
    name = f"{check_plain(stem)}-{hashlib.sha256(content).hexdigest()}.npz"
    if not (folder / name).exists():
        write_whole(folder / name, content)
    return name


def read_arrays(folder: Path, artifact: str) -> dict[str, np.ndarray]:
    """Return the arrays of an artifact, name -> array as it was given.

    Raises:
        BadInputError: The name is none that `write_arrays` gives, or the file is damaged.
        NotReadyError: The file is gone.
    """
    match = _NAME.fullmatch(artifact)
    if match is None:
        raise BadInputError(
            f"{artifact!r} is no artifact of a run: its name ends in the SHA-256 of its "
            f"content. Use the name in the run's record."
        )
    try:
        content = (folder / artifact).read_bytes()
    except FileNotFoundError as error:
        raise NotReadyError(
            f"The artifact {artifact} is gone from {folder}. Run the step that writes it again."
        ) from error
    if hashlib.sha256(content).hexdigest() != match["sha"]:
        raise BadInputError(
            f"The artifact {artifact} in {folder} is damaged: its content does not fit its name. "
            f"Remove the file and run the step that writes it again."
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    # numpy.savez takes names as keywords, where one could be its own.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(
                    entry, np.ascontiguousarray(arrays[name]), allow_pickle=False
                )
    return buffer.getvalue()

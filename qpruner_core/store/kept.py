"""Folders of a run that outlive an attempt of a step: checkpoints of a training, adapters that
were trained beside the line.

They lie in ``runs/<run_id>/kept`` and leave with the run; a copy of the run begins without them,
but for the checkpoint of a training that was stopped and whose outcome it has.
"""

from __future__ import annotations

from pathlib import Path

from qpruner_core.errors import BadInputError
from qpruner_core.store.names import check_plain
from qpruner_core.store.records import RunStore


def kept_folder(store: RunStore, run_id: str, name: str) -> Path:
    """Return the path of a kept folder, the same at every call; its parent is made, it is not.

    Raises:
        BadInputError: There is no such run, or the name is none for a file.
    """
    run = store.folder(run_id)
    if not run.is_dir():
        raise BadInputError(
            f"There is no run {run_id} in {store.home}; it may have been deleted. Choose another "
            f"one on the Runs page or of 'qpruner runs'."
        )
    parent = run / "kept"
    parent.mkdir(exist_ok=True)
    return parent / check_plain(name)

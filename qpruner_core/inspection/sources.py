"""Where a run's texts come from, and whether what recovery trains on is kept apart from what the
run is measured on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.spec import DataSpec
from qpruner_core.errors import BadInputError
from qpruner_core.inspection.folders import demo_folder
from qpruner_core.inspection.instructions import examine, is_instruction_file
from qpruner_core.inspection.texts import examine_text

WIKITEXT = "wikitext2"
WIKITEXT_SPLITS = {"calibration": "train", "training": "train", "heldout": "test"}
"""As the field uses it: perplexity on the test split, everything else from the training split."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a use reads: equal places are shared."""

    kind: str
    """``"file"`` or ``"wikitext2"``."""
    name: str
    """Path of the file, links resolved, or name of the split."""


def place_of(use: str, source: str) -> Place:
    """Return where a use finds its source.

    Args:
        use: ``"calibration"``, ``"training"`` or ``"heldout"``.
        source: As in `DataSpec`.

    Raises:
        BadInputError: It names a file that does not exist.
    """
    if source == "demo":
        return Place("file", str((demo_folder() / "data" / f"{use}.txt").resolve()))
    if source == WIKITEXT:
        return Place(WIKITEXT, WIKITEXT_SPLITS[use])
    path = Path(source).expanduser()
    if not path.is_file():
        further = ", or of instructions (.json or .jsonl)" if use == "training" else ""
        raise BadInputError(
            f"The {use} text {source!r} is not a file that exists. Give 'demo', 'wikitext2' or "
            f"the path of a UTF-8 text file with one document per line{further}."
        )
    return Place("file", str(path.resolve()))


def training_source(recovery: RecoverySpec, data: DataSpec) -> str:
    """Return what recovery trains on: its own text, else that of the run."""
    return recovery.training or data.training


def check_apart(recovery: RecoverySpec, data: DataSpec) -> None:
    """Refuse to train on a file that the run is calibrated or measured on.

    The run's own training text may be the same file as these: its uses have stretches of their
    own. Instructions are not divided so, and a recovery's own file was not when the run began.

    Raises:
        BadInputError: They are the same file, or one does not exist.
    """
    source = training_source(recovery, data)
    place = place_of("training", source)
    is_of_the_run = place == place_of("training", data.training)
    others = {"heldout": data.heldout, "calibration": data.calibration}
    for use, other in others.items():
        if place != place_of(use, other):
            continue
        words = "held-out" if use == "heldout" else use
        if is_instruction_file(source):
            raise BadInputError(
                f"The instruction file {source!r} is also the {words} text of this run, but "
                f"examples with their answers are not divided among uses. Give each a file."
            )
        if not is_of_the_run:
            raise BadInputError(
                f"Recovery was asked to train on {source!r}, which is the {words} text of this "
                f"run. Train on another text, or begin a run whose training text is that file, "
                f"too: then each use has a stretch of its own."
            )


def check_training(recovery: RecoverySpec, data: DataSpec) -> None:
    """Refuse what recovery cannot train on, before anything is computed.

    A file is read to its end and checked entry by entry; ``wikitext2`` is looked for when it is
    needed.

    Raises:
        BadInputError: The file is missing, is not UTF-8, has an entry that does not fit, or serves
            evaluation; the message names the first.
        DataTooShortError: It holds nothing.
    """
    check_apart(recovery, data)
    source = training_source(recovery, data)
    if is_instruction_file(source):
        examine(source)
    elif source not in ("demo", WIKITEXT):
        examine_text(source)

"""What a command takes from a run, said before it works, and the copy that spares the run."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

from qpruner_core.domain.harness import still_true
from qpruner_core.domain.record import STEPS, RunRecord
from qpruner_core.domain.spec import RunSpec
from qpruner_core.store.records import RunStore


def copy_option(parser: ArgumentParser) -> None:
    """Add what spares the run that was named."""
    parser.add_argument(
        "--copy",
        action="store_true",
        help="leave the run as it is and work in a copy, whose id is printed",
    )


def replaced_words(
    store: RunStore, record: RunRecord, spec: RunSpec, steps: tuple[str, ...]
) -> str:
    """Return what steps take from a run, its folders included, as one line; empty for nothing.

    Args:
        store: Where the run lies.
        record: The run as it stands.
        spec: As the steps are asked for.
        steps: Those that will be run.
    """
    filled = [step for step in STEPS if getattr(record, step) is not None]
    anew = [step for step in filled if step in steps and not _goes_on(record, spec, step)]
    after = STEPS[STEPS.index(steps[-1]) + 1 :]
    emptied = [step for step in filled if step in after] + _beside(record, steps[0])
    if not anew and not emptied:
        return ""
    parts = [f"made anew: {', '.join(anew)}"] if anew else []
    parts += [f"emptied, as it belongs to the old result: {', '.join(emptied)}"] if emptied else []
    return (
        f"Run {record.run_id}: {'; '.join(parts)}.{_folders_words(store, record, anew, emptied)}"
    )


def _goes_on(record: RunRecord, spec: RunSpec, step: str) -> bool:
    """Whether a step takes up a training that was stopped, rather than replacing it."""
    trained = record.recover
    if step != "recover" or trained is None or trained.is_complete or record.search is None:
        return False
    number = spec.recovery.trial
    asked = record.search.chosen if number is None else number
    return trained.spec == replace(spec.recovery, trial=asked)


def _beside(record: RunRecord, first: str) -> list[str]:
    """Return what goes besides the slots when steps from the first one on are run."""
    gone = []
    if record.comparison is not None and STEPS.index(first) <= STEPS.index("score"):
        gone.append("the comparison of criteria")
    n_lost = len(record.harness) - len(still_true(record.harness, first, STEPS))
    if n_lost:
        gone.append(f"{n_lost} of what lm-evaluation-harness measured")
    return gone


def _folders_words(store: RunStore, record: RunRecord, anew: list[str], emptied: list[str]) -> str:
    own = store.folder(record.run_id)
    paths = []
    if record.recover is not None and record.recover.adapter and "recover" in (*anew, *emptied):
        paths.append(own / "artifacts" / record.recover.adapter)
    if record.export is not None and "export" in (*anew, *emptied):
        paths.append(own / "artifacts" / record.export.path)
    going = [path for path in paths if path.is_relative_to(own)]
    staying = [path for path in paths if path not in going]
    words = f" Removed: {_listed(going)}." if going else ""
    words += f" {_listed(staying)} stays where it is." if staying else ""
    return f"{words} --copy works in a copy instead."


def _listed(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))

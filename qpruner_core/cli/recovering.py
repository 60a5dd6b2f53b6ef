"""Recovery in this process: what it would take, told before anything is trained, and Ctrl-C that
keeps what was learned.
"""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import FrameType
from typing import Any

from qpruner_core.catalog import check_recovery, precision_formats
from qpruner_core.domain.device_memory import TrainingBytes, training_bytes_estimate
from qpruner_core.domain.footprint import format_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import Progress
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.search.costs import training_load
from qpruner_core.store.codec import to_plain
from qpruner_core.store.records import LINE_CHECKPOINT, RunStore

LOADING = "loading the model and what it trains on"


def estimate_option(parser: ArgumentParser) -> None:
    """Add what asks for the memory of training alone."""
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="print the estimated training memory, with and without gradient checkpointing, and "
        "train nothing",
    )


def estimate_document(
    layout: ModelLayout, plan: PrecisionPlan, spec: RecoverySpec, compute_bytes: int
) -> dict[str, Any]:
    """Return the estimated bytes of training by what they are spent on, as asked for and with and
    without gradient checkpointing.

    Args:
        layout: Of the pruned model.
        plan: Precision of every Linear.
        spec: How to train.
        compute_bytes: Bytes of one activation: 2 on CUDA, 4 on the CPU.
    """
    check_recovery(spec)

    def parts(checkpointing: bool) -> dict[str, int]:
        asked = replace(spec, gradient_checkpointing=checkpointing)
        load = training_load(asked, compute_bytes)
        return _parts(training_bytes_estimate(layout, plan, precision_formats(), load))

    return {
        "precisions": dict(Counter(plan.precisions.values())),
        "settings": to_plain(spec),
        "gradient_checkpointing": spec.gradient_checkpointing,
        "estimated_bytes": parts(spec.gradient_checkpointing),
        "estimated_bytes_without_checkpointing": parts(False),
        "estimated_bytes_with_checkpointing": parts(True),
    }


def _parts(found: TrainingBytes) -> dict[str, int]:
    return {**asdict(found), "total": found.total}


def estimate_lines(document: dict[str, Any]) -> list[str]:
    """Return the estimate as a small table for a person."""
    without = document["estimated_bytes_without_checkpointing"]
    with_it = document["estimated_bytes_with_checkpointing"]
    marks = ("", " (asked for)")
    is_on = document["gradient_checkpointing"]
    heads = f"{'plain' + marks[not is_on]:>22}{'checkpointing' + marks[is_on]:>28}"
    lines = [*_about(document), f"  {'':<12}{heads}"]
    return lines + [
        f"  {name:<12}{format_bytes(size):>22}{format_bytes(with_it[name]):>28}"
        for name, size in without.items()
    ]


def _about(document: dict[str, Any]) -> list[str]:
    """Return what is estimated: the plan, and the settings that decide."""
    plan = ", ".join(f"{name} {count}" for name, count in document["precisions"].items())
    trial = f"plan {document['trial']} ({plan})" if "trial" in document else plan
    settings = document["settings"]
    ranks = settings["layer_ranks"].items()
    by_hand = "".join(f", layer {layer}: {rank}" for layer, rank in ranks)
    n_read = settings["micro_batch_size"] or settings["batch_size"]
    return [
        f"Estimated memory of training {trial}:",
        f"  rank {settings['rank']}{by_hand}, on {', '.join(settings['targets']) or 'all roles'}; "
        f"{n_read} of {settings['batch_size']} sequences of {settings['sequence_length']} tokens "
        f"at a time; {settings['optimizer']}, start {settings['initialization']}",
    ]


class Interruption:
    """Ctrl-C, told gently: the first asks training to stop after its step, the second ends; before
    a step was trained the first ends.
    """

    def __init__(self) -> None:
        self._is_asked = False
        self.has_trained = True
        """Whether there is something learned to keep."""

    def hear(self, progress: Progress) -> None:
        """Take a report of the line: recovery begins, or has trained a step."""
        if progress.step == "recover":
            self.has_trained = progress.done > 0

    def asked(self) -> bool:
        """Whether training was asked to stop."""
        return self._is_asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the first Ctrl-C of a block as a wish; any other time it ends as ever."""
        before = signal.signal(signal.SIGINT, self._hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._is_asked or not self.has_trained:
            raise KeyboardInterrupt
        self._is_asked = True
        sys.stderr.write(
            "Stopping after this step; what was learned is kept. Ctrl-C again ends at once.\n"
        )


@contextmanager
def words_where_nothing_was_trained(
    store: RunStore, run_id: str, steps: tuple[str, ...], interruption: Interruption
) -> Iterator[None]:
    """Give a Ctrl-C that comes before the first step of a training its words.

    Raises:
        KeyboardInterrupt: It came; the message says where the training goes on from.
    """
    if steps[0] == "recover":
        interruption.has_trained = False
    try:
        yield
    except KeyboardInterrupt as stopped:
        if interruption.has_trained:
            raise
        again = f"'qpruner recover {run_id}'"
        words = f"Nothing was trained yet. {again} with these settings begins"
        if (store.folder(run_id) / LINE_CHECKPOINT).exists():
            words = (
                f"No step was trained. {again} goes on from the checkpoint that is there, if it "
                f"is of the same settings"
            )
        raise KeyboardInterrupt(f"Stopped. {words}.") from stopped

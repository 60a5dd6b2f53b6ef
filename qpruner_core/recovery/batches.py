"""Which rows every step of training reads: shuffled by seed, each once before any comes again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from qpruner_core.data.training import IGNORED, TrainingSet
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.errors import DataTooShortError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Rows that are read together; int64."""

    ids: torch.Tensor
    """Token ids, ``(B, T)``."""
    labels: torch.Tensor
    """What the token before it predicts, or `IGNORED`, ``(B, T)``."""
    positions: torch.Tensor | None
    """Position of every token in its own example, ``(B, T)``; None: rows are one text each."""

    @property
    def n_learned(self) -> int:
        """Tokens that are predicted; >= 1 in a batch, but not in every part of one."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def parts(self, n_rows: int) -> Iterator[Batch]:
        """Yield the batch in pieces of so many rows."""
        for first in range(0, len(self.ids), n_rows):
            yield self.rows(torch.arange(first, min(first + n_rows, len(self.ids))))

    def rows(self, chosen: torch.Tensor) -> Batch:
        """Return the batch of some rows, by index."""
        positions = None if self.positions is None else self.positions[chosen]
        return Batch(ids=self.ids[chosen], labels=self.labels[chosen], positions=positions)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        positions = None if self.positions is None else self.positions.to(device)
        return Batch(ids=self.ids.to(device), labels=self.labels.to(device), positions=positions)


def check_training_set(training: TrainingSet, spec: RecoverySpec) -> None:
    """Refuse rows that have nothing to learn.

    Raises:
        DataTooShortError: No row has a token to learn.
    """
    _learnable(training, spec.sequence_length)


def batches(training: TrainingSet, spec: RecoverySpec, start: int = 0) -> Iterator[Batch]:
    """Yield the batches of steps ``start`` to ``spec.steps``; the same ones wherever it starts.

    Args:
        training: Rows; longer ones than ``spec.sequence_length`` are cut, those without a token
            to learn are left out.
        spec: Batch size, length, steps and seed.
        start: First step, from 0.

    Raises:
        DataTooShortError: No row has a token to learn.
    """
    learnable = _learnable(training, spec.sequence_length)
    generator = torch.Generator().manual_seed(spec.seed)
    waiting = torch.empty(0, dtype=torch.int64)
    for step in range(spec.steps):
        while len(waiting) < spec.batch_size:
            order = torch.randperm(len(learnable.ids), generator=generator)
            waiting = torch.cat([waiting, order])
        chosen, waiting = waiting[: spec.batch_size], waiting[spec.batch_size :]
        if step >= start:
            yield learnable.rows(chosen)


def _learnable(training: TrainingSet, length: int) -> Batch:
    """Return the rows that teach something; no token is predicted from another example's last."""
    ids, labels = training.ids[:, :length], training.labels[:, :length]
    positions = None if training.positions is None else training.positions[:, :length]
    if positions is not None:
        labels = labels.masked_fill(positions == 0, IGNORED)
    teaching = (labels[:, 1:] != IGNORED).any(dim=1).nonzero()[:, 0]
    if not len(teaching):
        raise DataTooShortError(
            f"The training text gives {ids.shape[0]} sequences of {ids.shape[1]} tokens, none of "
            f"which has a token to learn; recovery needs at least one of 2 or more. Give a longer "
            f"training text."
        )
    return Batch(ids=ids, labels=labels, positions=positions).rows(teaching)

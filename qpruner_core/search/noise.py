"""What noise the evaluation text leaves between two plans, and whether that tells them apart.

Every plan answers the same sequences, so the difference of two plans is judged by the differences
sequence by sequence: what makes a sequence hard is in both and cancels. With d_i those of n
sequences, the mean difference has the standard error

    SE = sqrt( sum (d_i - mean d)^2 / (n - 1) / n )

which takes the sequences as drawn independently from what the model will read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf

import numpy as np

RESOLVED = 2.0
"""Standard errors from which on two plans are told apart."""
MOST_TEXT = 100
"""Multiples of the text beyond which no number is named."""

Losses = Sequence[float]
"""Loss of every evaluation sequence; nats per predicted token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """How much worse one plan is than another on the same sequences."""

    mean: float
    """Mean of the first minus the second; nats per token."""
    error: float
    """Standard error of that mean; nats per token, >= 0; infinite below two sequences."""
    n_sequences: int
    """Sequences compared."""

    @property
    def is_resolved(self) -> bool:
        """Whether the plans differ by more than `RESOLVED` standard errors."""
        return abs(self.mean) > RESOLVED * self.error

    @property
    def needed_sequences(self) -> float:
        """Sequences on which the same difference would be `RESOLVED` standard errors."""
        if self.mean == 0.0 or self.error == inf:
            return inf
        return self.n_sequences * (RESOLVED * self.error / self.mean) ** 2


def paired_error(a: Losses, b: Losses) -> PairedDifference:
    """Return the mean difference ``a - b`` and its standard error.

    Args:
        a: Losses of one plan.
        b: Losses of another on the same sequences, in the same order, as many.
    """
    if len(a) != len(b):
        raise ValueError(f"plans were compared on {len(a)} and {len(b)} sequences")
    n = len(a)
    if n < 2:
        mean = a[0] - b[0] if n else 0.0
        return PairedDifference(mean=float(mean), error=inf, n_sequences=n)
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    error = float(differences.std(ddof=1)) / n**0.5
    return PairedDifference(mean=float(differences.mean()), error=error, n_sequences=n)


def too_small(front: Sequence[Losses], sequence_length: int) -> str:
    """Return a sentence where the evaluation text does not tell neighbours of a front apart.

    Args:
        front: Sequence losses of the plans on the measured front, by ascending cost; an empty one
            stands for a plan whose losses are not known, and is not compared.
        sequence_length: Tokens per sequence.

    Returns:
        Empty where all known neighbours are told apart. Else how many are not, with the largest of
        their standard errors, and how much text would tell the least different of them apart.
    """
    words = _Words(
        read=f"sequences of {sequence_length} tokens",
        unit="nats per token",
        more="tokens of held-out text",
        each=sequence_length,
    )
    return _told(front, words)


def too_few_items(front: Sequence[Losses]) -> str:
    """Return a sentence where the items of the tasks do not tell neighbours of a front apart.

    Args:
        front: As for `too_small`, with 1 for every item that was answered wrongly and 0 for every
            other.
    """
    return _told(front, _Words(read="items", unit="of accuracy", more="items", each=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """How the sentence names what was read."""

    read: str
    unit: str
    more: str
    each: int
    """What one of them counts in the advice."""


def _told(front: Sequence[Losses], words: _Words) -> str:
    pairs = [paired_error(a, b) for a, b in pairwise(front) if a and len(a) == len(b)]
    unresolved = [pair for pair in pairs if not pair.is_resolved]
    if not unresolved:
        return ""
    n, error = unresolved[0].n_sequences, max(pair.error for pair in unresolved)
    noise = f"at most {error:.4f} {words.unit}" if error < inf else "unknown of a single one"
    return (
        f"{len(unresolved)} of {len(pairs)} pairs of neighbours on the measured front differ by "
        f"less than twice the standard error of their difference ({noise}, {n} {words.read}): the "
        f"evaluation set is too small to tell them apart. {_advice(unresolved, words)}"
    )


def _advice(unresolved: Sequence[PairedDifference], words: _Words) -> str:
    needed = max(pair.needed_sequences for pair in unresolved)
    if needed > MOST_TEXT * unresolved[0].n_sequences:
        return (
            f"Some are alike for all that it can say: even {MOST_TEXT} times as much would not "
            f"do. Take the cheaper one of each pair."
        )
    return (
        f"Evaluate on about {ceil(needed) * words.each:,} {words.more}, or take the cheaper one."
    )

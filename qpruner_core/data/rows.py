"""Examples laid into rows of equal length; arithmetic on lengths and arrays alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch

from qpruner_core.data.instructions import Example
from qpruner_core.data.training import IGNORED, TrainingSet

Rows = list[list[int]]
"""For each row the indices of its examples, in order."""


def shared_rows(lengths: Sequence[int], width: int, seed: int) -> Rows:
    """Lay examples into few rows: each, in a seeded order, into the fullest row that has room.

    Best fit by counting: rows are kept by the room they have left, so that the time grows with the
    number of examples alone.

    Args:
        lengths: Of every example; in [1, width].
        width: Tokens of a row.
        seed: Seed of the order.
    """
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)  # noqa: S311  not cryptographic
    rows: Rows = []
    with_room: list[list[int]] = [[] for _ in range(width + 1)]
    some = 0  # bit r: there is a row with room for r more
    for index in order:
        length = lengths[index]
        enough = some >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                some &= ~(1 << room)
        else:
            room, row = width, len(rows)
            rows.append([])
        rows[row].append(index)
        if room > length:
            with_room[room - length].append(row)
            some |= 1 << (room - length)
    return rows


def training_set(
    examples: Sequence[Example],
    rows: Rows,
    *,
    pad: int,
    train_on_prompt: bool,
    remarks: tuple[str, ...] = (),
) -> TrainingSet:
    """Return rows as wide as the fullest; what is left of a row is padding.

    Positions begin anew with every example and once more with the padding, which so is an example
    of its own that nothing else sees, and is not learned.

    Args:
        examples: Of two tokens or more each.
        rows: Which examples share a row.
        pad: Token id of padding.
        train_on_prompt: Whether prompts are learned too.
        remarks: Sentences for the person.
    """
    width = max(sum(len(examples[index].ids) for index in row) for row in rows)
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        at = 0
        for index in row:
            example = examples[index]
            end, learned = at + len(example.ids), at + example.first_learned(train_on_prompt)
            ids[number, at:end] = example.ids
            labels[number, learned:end] = ids[number, learned:end]
            positions[number, at:end] = np.arange(end - at)
            at = end
        positions[number, at:] = np.arange(width - at)
    found = (torch.from_numpy(array) for array in (ids, labels, positions))
    ids_, labels_, positions_ = found
    return TrainingSet(ids=ids_, labels=labels_, positions=positions_, remarks=remarks)

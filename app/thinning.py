"""Which points of a large picture are drawn: where marks would cover each other, one for all.

A grid as fine as a mark is laid over the frame; of the trials of one run and pruning ratio in one
cell the best is drawn. Whatever a person looks for by name is always drawn.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from app import points
from app.clouds import Cloud, Floats, Mask
from app.front_traces import Frame

N_ALL = 2_000
"""Points up to which all are drawn."""
N_ACROSS, N_UP = 100, 40
"""Cells of the grid; each about as large as a mark on a wide screen."""
N_RECENT = 50
"""Newest trials of every run, which are always drawn."""


def drawn(found: Cloud, frame: Frame, keys: Iterable[str | None] = ()) -> Cloud:
    """Return the points that a picture draws, in the order in which they came.

    Args:
        found: All points.
        frame: Where they stand.
        keys: Points that are drawn whatever lies over them, such as those with rings.
    """
    if len(found) <= N_ALL:
        return found
    kept = ~found.is_kind(points.PLAN) | found.is_named
    kept[found.front(frame.objective, frame.cost)] = True
    kept[[at for at in map(found.position, keys) if at is not None]] = True
    return found.where(kept | _newest(found) | _best_of_cells(found, frame))


def _newest(found: Cloud) -> Mask:
    """Return which points are the newest trials of their run."""
    # Plans by hand have higher numbers than any trial, and are drawn anyway.
    is_trial = found.is_kind(points.PLAN) & ~found.is_named
    order = np.lexsort((-np.where(is_trial, found.numbers, -1.0), found.runs))
    of_run = found.runs[order]
    rank = np.arange(len(order)) - np.searchsorted(of_run, of_run)
    newest = np.zeros(len(found), dtype=np.bool_)
    newest[order[rank < N_RECENT]] = True
    return newest


def _best_of_cells(found: Cloud, frame: Frame) -> Mask:
    """Return which points are the best of their cell, of equal ones the cheapest."""
    costs, bad = found.cost(frame.cost), found.badness(frame.objective)
    cells = np.column_stack(
        (
            found.runs,
            np.nan_to_num(found.pruned, nan=-1.0),
            _steps(frame.across(found), N_ACROSS),
            _steps(frame.places(found), N_UP),
        )
    )
    order = np.lexsort((costs, bad))
    first = np.unique(cells[order], axis=0, return_index=True)[1]
    best = np.zeros(len(found), dtype=np.bool_)
    best[order[first]] = True
    return best


def _steps(at: Floats, n_steps: int) -> Floats:
    """Return in which of equal steps between their ends values lie."""
    low, high = float(at.min()), float(at.max())
    return np.floor((at - low) / ((high - low) or 1.0) * n_steps)

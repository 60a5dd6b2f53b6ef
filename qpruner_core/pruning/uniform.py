"""Uniform shape: one width per kind for the whole model, found among all that are allowed.

Widths of different kinds are chosen together: among the combinations whose parameters come within
half a rung of the ratio, the one in which the kinds lose the most equal shares. So many rungs lie
between two ratios that a larger ratio may give a few KV heads back for channels; nestedness is a
law of ``per-layer`` shape only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qpruner_core.pruning.ladders import Floats, Ladder
from qpruner_core.pruning.widths import Ints

MOST_RUNGS = 48
"""Rungs of a coarse kind that are looked at, those nearest to the ratio's share."""

Widths = dict[str, int]
"""Kind -> units that every layer keeps."""


def uniform_widths(ladders: Sequence[Ladder], target: float) -> list[int]:
    """Return the width of every ladder, equal within a kind.

    Args:
        ladders: All groups of the kinds that may leave, of the layers that stay.
        target: Parameters that are to leave, those of earlier rounds left out.
    """
    rungs = _rungs(ladders)
    fine = max(rungs, key=lambda kind: len(rungs[kind]), default=None)
    if fine is None:
        return []
    whole = sum(_removed(ladders, {k: n[-1:] for k, n in rungs.items()}).ravel())
    share = min(1.0, target / max(1.0, float(whole)))
    near = {k: n if k == fine else _nearest(n, share) for k, n in rungs.items()}
    chosen = _choose(ladders, near, fine, target)
    return [chosen[ladder.group.kind] for ladder in ladders]


def smallest_uniform(ladders: Sequence[Ladder]) -> list[int]:
    """Return the width of every ladder when as much leaves as can."""
    rungs = _rungs(ladders)
    return [int(rungs[ladder.group.kind][-1]) for ladder in ladders]


def _rungs(ladders: Sequence[Ladder]) -> dict[str, Ints]:
    """Return kind -> widths that all its groups can have, descending: those of the narrowest."""
    rungs: dict[str, Ints] = {}
    for ladder in ladders:
        known = rungs.get(ladder.group.kind)
        if known is None or ladder.widths[0] < known[0]:
            rungs[ladder.group.kind] = ladder.widths
    return rungs


def _nearest(widths: Ints, share: float) -> Ints:
    """Return the rungs nearest to a share of the width, in their order."""
    distance = np.abs(1.0 - widths / widths[0] - share)
    return widths[np.sort(np.argsort(distance, kind="stable")[:MOST_RUNGS])]


def _choose(ladders: Sequence[Ladder], rungs: dict[str, Ints], fine: str, target: float) -> Widths:
    removed = _removed(ladders, rungs)
    errors = np.abs(removed - target)
    axis = list(rungs).index(fine)
    a_rung = np.abs(np.diff(removed, axis=axis)).max(initial=0.0)
    spread = np.where(errors <= max(float(errors.min()), a_rung / 2), _spread(ladders, rungs), 2.0)
    # Of equal spreads the nearest; of equally near ones the first, which removes fewer units.
    best = np.lexsort((errors.ravel(), np.round(spread, 12).ravel()))[0]
    places = np.unravel_index(best, removed.shape)
    return {kind: int(rungs[kind][i]) for kind, i in zip(rungs, places, strict=True)}


def _along(values: Floats, axis: int, n_axes: int) -> Floats:
    """Return values as an array that varies along one axis of the grid."""
    shape = [1] * n_axes
    shape[axis] = len(values)
    return values.reshape(shape)


def _removed(ladders: Sequence[Ladder], rungs: dict[str, Ints]) -> Floats:
    """Return the parameters that leave, one axis per kind; experts share those of their channels.

    Exact where the experts of a layer are equally wide.
    """
    total = np.zeros([len(widths) for widths in rungs.values()])
    channels = np.zeros_like(total)
    for axis, (kind, widths) in enumerate(rungs.items()):
        owners = [ladder for ladder in ladders if ladder.group.kind == kind]
        gone = sum((int(x.widths[0]) - widths) * float(x.group.unit_parameters) for x in owners)
        grid = _along(np.asarray(gone, dtype=np.float64), axis, total.ndim)
        if kind == "expert_channels":
            channels = channels + grid
        elif kind != "experts":
            total = total + grid
    if "experts" not in rungs:
        return np.asarray(total + channels)
    axis = list(rungs).index("experts")
    owners = [ladder for ladder in ladders if ladder.group.kind == "experts"]
    present = sum(int(x.widths[0]) for x in owners)
    kept = _along(len(owners) * rungs["experts"] / present, axis, total.ndim)
    whole = sum(_present(ladder) for ladder in owners)
    return np.asarray(total + (1.0 - kept) * whole + kept * channels)


def _present(ladder: Ladder) -> float:
    """Return the parameters of the experts of a layer that are left."""
    gone = ladder.group.n_units - int(ladder.widths[0])
    return float(ladder.prices[gone:].sum()) if ladder.prices is not None else 0.0


def _spread(ladders: Sequence[Ladder], rungs: dict[str, Ints]) -> Floats:
    """Return the largest difference between the shares that the kinds lose, on the grid."""
    units = {kind: max(x.group.n_units for x in ladders if x.group.kind == kind) for kind in rungs}
    shares = [
        _along(1.0 - widths / units[kind], axis, len(rungs))
        for axis, (kind, widths) in enumerate(rungs.items())
        if units[kind] > 1
    ]
    if not shares:
        return np.zeros([1] * len(rungs))
    highest, lowest = shares[0], shares[0]
    for values in shares[1:]:
        highest, lowest = np.maximum(highest, values), np.minimum(lowest, values)
    return np.asarray(np.broadcast_to(highest - lowest, [len(w) for w in rungs.values()]))

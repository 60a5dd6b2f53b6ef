"""One order for all steps down all ladders, of which a plan takes the first.

Going down one rung of a ladder is a step. The order of the steps is the scope:

- ``per-layer``. Inside a layer, steps go by the share of their group that is gone after them, MLP
  channels before KV heads where two shares are equal, so that the kinds lose alike and the coarse
  KV heads are rounded down rather than up. Layers are then merged by the share of their parameters
  that is gone after a step; among equal shares, the step of least score per parameter. Layers thus
  go down together and differ by one step.
- ``global``: by score per parameter. The scores of the criteria are sums over the weights of a
  unit that stand for the loss its removal costs, so loss per parameter ranks units of every kind
  and layer against each other.
- ``balanced``: by the relative score s / mean, the mean taken over the units that are left of one
  layer and kind. A unit is weighed against the average unit of its own block, so that layers and
  kinds whose scores differ in scale, as those of activations do, compete fairly: a block whose
  worth sits in few units loses many, one whose units are alike loses few.
- ``standardised``: by (s - mean) / std over the same units, as FLAP ranks (An et al.,
  arXiv:2312.11983). FLAP standardises every channel of the attention output and averages over a
  head; criteria here score a head as a whole, which is standardised among the heads of its layer.

In the last two, heads and channels compete with their scores as they are, and their parameters
count only towards the ratio; where all scores are equal, every unit stands at the mean.

In the last two, widths below the multiple come after all others, so that no MLP is cut to a few
channels while the ratio can be met without.

As the order does not depend on the ratio, a larger ratio removes what a smaller one removes and
more. That is why a layer's remainder is not filled up with channels that would have to come back
once the next KV head leaves. Ties are broken by index: later units and later layers leave first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpruner_core.pruning.ladders import Floats, Ladder
from qpruner_core.pruning.widths import Ints

FINE_FIRST = ("mlp_channels", "expert_channels", "kv_heads", "experts")
"""Which kind leaves first where two have lost the same share: the finer one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Parameters of every layer, and those that are gone before the first step."""

    whole: Ints
    """Shape (n_layers,)."""
    gone: Ints
    """Shape (n_layers,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """All steps of some ladders, ladder by ladder; every array has shape (n_steps,)."""

    ladders: Sequence[Ladder]
    """Those that leave first among equals come first: fine kinds, then later groups."""
    owners: Ints
    """Index of the ladder."""
    shares: Floats
    costs: Floats
    parameters: Ints


def descend(ladders: Sequence[Ladder], layers: Layers, scope: str, target: float) -> list[int]:
    """Return the width of every ladder when the first steps of the order are taken.

    Args:
        ladders: Groups in the layout's order.
        layers: Parameters of the model's layers.
        scope: A pruning scope.
        target: Parameters that are to leave by these steps; the nearest sum is taken, the smaller
            of two equally near.
    """
    places = sorted(range(len(ladders)), key=lambda i: (_fineness(ladders[i]), -i))
    steps = _steps([ladders[i] for i in places], scope)
    order = _by_layer(steps, layers, target) if scope == "per-layer" else _by_cost(steps)
    sums = np.concatenate(([0], np.cumsum(_parameters_in(order, steps))))
    n_steps = int(np.argmin(np.abs(sums - target)))
    taken = np.bincount(steps.owners[order[:n_steps]], minlength=len(ladders))
    widths = {i: int(ladders[i].widths[n]) for i, n in zip(places, taken, strict=True)}
    return [widths[i] for i in range(len(ladders))]


def _fineness(ladder: Ladder) -> int:
    return FINE_FIRST.index(ladder.group.kind)


def _steps(ladders: Sequence[Ladder], scope: str) -> _Steps:
    counts = [len(ladder.widths) - 1 for ladder in ladders]
    return _Steps(
        ladders=ladders,
        owners=np.repeat(np.arange(len(ladders)), counts),
        shares=_joined([ladder.shares for ladder in ladders]),
        costs=_joined([ladder.costs(scope) for ladder in ladders]),
        parameters=_joined([ladder.parameters for ladder in ladders]).astype(np.int64),
    )


def _joined(parts: Sequence[NDArray[Any]]) -> Floats:
    return np.concatenate([np.zeros(0), *parts])


def _by_cost(steps: _Steps) -> Ints:
    breaks = _joined([ladder.breaks for ladder in steps.ladders])
    order = np.lexsort((steps.shares, steps.costs, breaks))
    return order[_parameters_in(order, steps) > 0]


def _by_layer(steps: _Steps, layers: Layers, target: float) -> Ints:
    """Return the steps ordered inside every layer, then the layers merged."""
    chain = _chains(steps)
    parameters = _parameters_in(chain, steps)
    chain, parameters = chain[parameters > 0], parameters[parameters > 0]
    layer = _layers_of(steps)[chain]
    sums = np.cumsum(parameters)
    starts = np.searchsorted(layer, np.arange(len(layers.whole)))
    before = np.concatenate(([0], sums))[starts][layer]
    shares = (layers.gone[layer] + sums - before) / layers.whole[layer]
    merged = np.argsort(shares, kind="stable")
    if len(merged) == 0:
        return chain
    # Which of the steps of one share come first matters only where the plan ends, and sorting the
    # costs of all of them would double the time.
    end = np.searchsorted(np.cumsum(parameters[merged]), target)
    at_end = shares[merged[min(int(end), len(merged) - 1)]]
    low, high = (np.searchsorted(shares[merged], at_end, side=x) for x in ("left", "right"))
    level = chain[merged[low:high]]
    by_cost = np.lexsort((steps.owners[level], steps.costs[level]))
    merged[low:high] = merged[low:high][by_cost]
    return chain[merged]


def _chains(steps: _Steps) -> Ints:
    """Return the steps layer by layer, in each by the share of their group that is gone."""
    # Shares lie in [0, 1], so layer and share fit one key.
    keys = 2.0 * _layers_of(steps) + steps.shares
    if all(ladder.group.kind != "expert_channels" for ladder in steps.ladders):
        return np.argsort(keys, kind="stable")
    kinds = np.array([_fineness(ladder) for ladder in steps.ladders], dtype=np.int64)
    return np.lexsort((steps.costs, kinds[steps.owners], keys))


def _layers_of(steps: _Steps) -> Ints:
    layers = np.array([ladder.group.layer for ladder in steps.ladders], dtype=np.int64)
    return layers[steps.owners]


def _parameters_in(order: Ints, steps: _Steps) -> Ints:
    """Return the parameters that leave with each step of an order, shape (n_steps,).

    An expert takes its channels along: those that left before do not leave again with it, and
    once it is gone its channels have nothing to give.
    """
    parameters = steps.parameters[order]
    experts = [ladder.group.kind == "experts" for ladder in steps.ladders]
    names = {ladder.group.name: i for i, ladder in enumerate(steps.ladders)}
    owners = steps.owners[order]
    at = np.flatnonzero(np.array(experts, dtype=bool)[owners])
    if len(at) == 0:
        return parameters
    channels = _channels_of(steps, owners[at], names)
    leaves = np.full(len(steps.ladders) + 1, len(order))
    leaves[channels] = at
    parameters[np.arange(len(order)) > leaves[owners]] = 0
    lost = np.bincount(owners, weights=parameters, minlength=len(leaves)).astype(np.int64)
    lost[-1] = 0
    parameters[at] -= lost[channels]
    return parameters


def _channels_of(steps: _Steps, owners: Ints, names: dict[str, int]) -> Ints:
    """Return the ladder of the channels of every expert that leaves; -1 where it has none."""
    found, seen = [], dict.fromkeys(owners.tolist(), 0)
    for owner in owners.tolist():
        ladder = steps.ladders[owner]
        group, place = ladder.group, _unit_at(ladder, seen[owner])
        seen[owner] += 1
        found.append(names.get(group.members[place], -1))
    return np.array(found, dtype=np.int64)


def _unit_at(ladder: Ladder, step: int) -> int:
    """Return which unit leaves at a step of a ladder whose steps are single units."""
    n_units = ladder.group.n_units
    position = n_units - int(ladder.widths[0]) + step
    return n_units - 1 - position if ladder.order is None else int(ladder.order[position])

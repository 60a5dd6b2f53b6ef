"""Which coupled groups may lose units and how many they may keep; knows no scores or weights."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qpruner_core.domain.layout import GroupLayout, ModelLayout, heads_open_plainly
from qpruner_core.domain.spec import PruningSpec
from qpruner_core.errors import BadInputError

Ints = NDArray[np.int64]

CHANNELS = ("mlp_channels", "expert_channels")
"""Kinds whose numbers are rounded to the width multiple."""


def fitting_multiple(width: int, multiple: int) -> int:
    """Return the multiple that MLP widths are rounded to.

    The wanted multiple when at least four of them fit the width, so that a ratio can still be met
    within an eighth; else the largest power of two of which four fit; >= 1.
    """
    if 4 * multiple <= width:
        return multiple
    return 1 << max(0, (width // 4).bit_length() - 1)


# A slider asks for the same ladders at every move, and one rung per channel makes them long.
@lru_cache(maxsize=256)
def width_ladder(width: int, multiple: int) -> Ints:
    """Return the widths a group of that width may have, descending from the width itself to 1.

    Multiples as far down as they go, then powers of two, so that no ratio below 1 is out of reach
    for want of a multiple. The ladder does not depend on the ratio: a larger ratio goes further
    down the same rungs. The array is shared and cannot be written.
    """
    multiples = np.arange((width - 1) // multiple * multiple, 0, -multiple)
    powers = 1 << np.arange((multiple - 1).bit_length())[::-1]
    below = powers[powers < min(multiple, width)]
    ladder = np.concatenate(([width], multiples, below)).astype(np.int64)
    ladder.setflags(write=False)
    return ladder


def least_units(layout: ModelLayout, group: GroupLayout) -> int:
    """Return how many units must stay in a group: one, or the experts that a token asks for."""
    per_token = int(getattr(layout, "experts_per_token", 1))
    return max(1, per_token) if group.kind == "experts" else 1


def group_multiple(group: GroupLayout, spec: PruningSpec) -> int:
    """Return the multiple that the widths of a group keep to where the ratio allows."""
    return fitting_multiple(group.n_units, spec.width_multiple) if group.kind in CHANNELS else 1


def group_ladder(layout: ModelLayout, group: GroupLayout, spec: PruningSpec) -> Ints:
    """Return the numbers of units a group may keep under a spec, descending from all of them.

    In uniform shape, only numbers of KV heads that the stock config accepts.
    """
    ladder = width_ladder(group.n_units, group_multiple(group, spec))
    if group.kind == "experts":
        return ladder[ladder >= min(group.n_units, least_units(layout, group))]
    if group.kind == "kv_heads" and spec.shape == "uniform":
        opens = [heads_open_plainly(layout, int(n)) for n in ladder]
        return ladder[[True, *opens[1:]]]
    return ladder


def protected_layers(n_layers: int, spec: PruningSpec) -> frozenset[int]:
    """Return the layers that lose nothing in ``per-layer`` shape, unless a ratio by hand says so.

    The defaults are the first 4 and the last 2 layers from 20 layers on; below, a fifth and a
    tenth of the layers, rounded to the nearest, which leaves at least half of them prunable (2 and
    1 of 12, none of 2). Numbers that a person gives are taken as they are.
    """
    first = spec.protect_first if spec.protect_first is not None else min(4, round(n_layers / 5))
    last = spec.protect_last if spec.protect_last is not None else min(2, round(n_layers / 10))
    return frozenset(
        layer for layer in range(n_layers) if layer < first or layer >= n_layers - last
    )


def ratios_by_hand(layout: ModelLayout, spec: PruningSpec) -> dict[int, float]:
    """Return layer -> the share of its parameters that was given by hand.

    Empty in uniform shape, where no layer can have a width of its own.

    Raises:
        BadInputError: The model has no such layer.
    """
    unknown = sorted(int(layer) for layer in spec.layer_ratios if int(layer) >= layout.n_layers)
    if unknown:
        raise BadInputError(
            f"Ratios by hand name the layers {', '.join(map(str, unknown))}, but the model has "
            f"layers 0 to {layout.n_layers - 1}. Take those ratios out."
        )
    if spec.shape == "uniform":
        return {}
    return {int(layer): ratio for layer, ratio in spec.layer_ratios.items()}


def losing_kinds(layout: ModelLayout, spec: PruningSpec) -> tuple[str, ...]:
    """Return the kinds of unit that may leave: those asked for, which in uniform shape the stock
    config must be able to state.
    """
    plain = spec.shape != "uniform"
    return tuple(kind for kind in spec.kinds if plain or kind in layout.plain_kinds)


def prunable_groups(
    layout: ModelLayout, spec: PruningSpec, dropped: frozenset[int] = frozenset()
) -> list[GroupLayout]:
    """Return the groups that may lose units, in the layout's order.

    Args:
        layout: The model before pruning.
        spec: Kinds, shape, protection and ratios by hand.
        dropped: Layers that leave whole.
    """
    uniform = spec.shape == "uniform"
    shielded = frozenset[int]() if uniform else protected_layers(layout.n_layers, spec)
    shielded = (shielded - ratios_by_hand(layout, spec).keys()) | dropped
    kinds = losing_kinds(layout, spec)
    return [
        group
        for group in layout.groups
        if group.layer not in shielded
        and group.kind in kinds
        and (uniform or group.n_units > least_units(layout, group))
    ]

"""Which coupled groups may lose units and how many they may keep; knows no scores or weights."""

from __future__ import annotations

from qpruner_core.domain.layout import GroupLayout, ModelLayout, heads_open_plainly
from qpruner_core.domain.spec import PruningSpec


def fitting_multiple(width: int, multiple: int) -> int:
    """Return the multiple that MLP widths are rounded to.

    The wanted multiple when at least four of them fit the width, so that a ratio can still be met
    within an eighth; else the largest power of two of which four fit; >= 1.
    """
    if 4 * multiple <= width:
        return multiple
    return 1 << max(0, (width // 4).bit_length() - 1)


def width_ladder(width: int, multiple: int) -> tuple[int, ...]:
    """Return the widths a group of that width may have, descending from the width itself to 1.

    Multiples as far down as they go, then powers of two, so that no ratio below 1 is out of reach
    for want of a multiple. The ladder does not depend on the ratio: a larger ratio goes further
    down the same rungs.
    """
    multiples = range((width - 1) // multiple * multiple, 0, -multiple)
    powers = (1 << exponent for exponent in reversed(range((multiple - 1).bit_length())))
    return (width, *multiples, *(power for power in powers if power < min(multiple, width)))


def group_ladder(layout: ModelLayout, group: GroupLayout, spec: PruningSpec) -> tuple[int, ...]:
    """Return the numbers of units a group may keep under a spec, descending from all of them."""
    if group.kind == "mlp_channels":
        return width_ladder(group.n_units, fitting_multiple(group.n_units, spec.width_multiple))
    ladder = width_ladder(group.n_units, 1)
    if spec.shape == "uniform":
        return ladder[:1] + tuple(n for n in ladder[1:] if heads_open_plainly(layout, n))
    return ladder


def protected_layers(n_layers: int, spec: PruningSpec) -> frozenset[int]:
    """Return the layers that lose nothing in ``per-layer`` shape.

    The defaults are the first 4 and the last 2 layers from 20 layers on; below, a fifth and a
    tenth of the layers, rounded to the nearest, which leaves at least half of them prunable (2 and
    1 of 12, none of 2). Numbers that a person gives are taken as they are.
    """
    first = spec.protect_first if spec.protect_first is not None else min(4, round(n_layers / 5))
    last = spec.protect_last if spec.protect_last is not None else min(2, round(n_layers / 10))
    return frozenset(
        layer for layer in range(n_layers) if layer < first or layer >= n_layers - last
    )


def prunable_groups(layout: ModelLayout, spec: PruningSpec) -> dict[str, list[GroupLayout]]:
    """Return kind -> groups that may lose units; one unit per layer is none to spare."""
    uniform = spec.shape == "uniform"
    shielded = frozenset[int]() if uniform else protected_layers(layout.n_layers, spec)
    kinds: dict[str, list[GroupLayout]] = {}
    for group in layout.groups:
        if group.layer not in shielded and (uniform or group.n_units > 1):
            kinds.setdefault(group.kind, []).append(group)
    return {kind: groups for kind, groups in kinds.items() if max(g.n_units for g in groups) > 1}


def largest_ratio(layout: ModelLayout, spec: PruningSpec) -> float:
    """Return the largest ratio that leaves a unit in every group; in [0, 1)."""
    shares = []
    for groups in prunable_groups(layout, spec).values():
        total = sum(group.n_units for group in groups)
        if spec.shape == "uniform":
            narrowest = min(groups, key=lambda group: group.n_units)
            least = len(groups) * group_ladder(layout, narrowest, spec)[-1]
        else:
            least = sum(group_ladder(layout, group, spec)[-1] for group in groups)
        shares.append((total - least) / total)
    return min(shares, default=0.0)

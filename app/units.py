"""Which units of every layer stay under a plan, as small matrices that a picture can show.

A Llama of 7 billion parameters has 352,256 MLP channels; a picture gets at most `N_BINS` columns
per kind, so that a slider can ask for it at every move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qpruner_core.domain.layout import KINDS, GroupLayout, ModelLayout
from qpruner_core.domain.plan import PruningPlan

Floats = NDArray[np.float64]

N_BINS = 96
"""Columns of a panel at most; wider layers share columns."""
EXPERT_KINDS = ("experts", "expert_channels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One kind of unit over all layers."""

    title: str
    unit: str
    """What the numbers across count."""
    edges: Floats
    """Where columns begin and end, in units, shape (n_columns + 1,)."""
    kept: Floats
    """Share of the units of a layer and column that stays, shape (n_layers, n_columns); NaN where
    the layer has none."""
    words: tuple[str, ...]
    """What is left of every layer, such as ``3/4``; empty for layers without such units."""

    @property
    def is_single(self) -> bool:
        """Whether every column is one unit."""
        return bool((np.diff(self.edges) == 1).all())


def one(kind: str) -> str:
    """Return the word for one unit of a kind, such as ``KV head``."""
    return KINDS[kind].removesuffix("s")


def kinds_of(layout: ModelLayout) -> tuple[str, ...]:
    """Return the kinds of unit that a model has, in the order of `KINDS`."""
    found = {group.kind for group in layout.groups}
    return tuple(kind for kind in KINDS if kind in found)


def n_experts(layout: ModelLayout) -> int:
    """Return the experts of the layer that has most of them; 0 for dense models."""
    whole = [group.n_units for group in layout.groups if group.kind == "experts"]
    channels = Counter(group.layer for group in layout.groups if group.kind == "expert_channels")
    return max([*whole, *channels.values()], default=0)


def panels(dense: ModelLayout, plan: PruningPlan) -> tuple[Panel, ...]:
    """Return one panel per kind of unit that the model has; experts with their channels share
    one.
    """
    found = kinds_of(dense)
    made = [_units(dense, plan, kind) for kind in found if kind not in EXPERT_KINDS]
    if set(found) & set(EXPERT_KINDS):
        made.append(_experts(dense, plan))
    return tuple(made)


def mask(group: GroupLayout, plan: PruningPlan) -> NDArray[np.bool_]:
    """Return which units of a group stay, shape (n_units,)."""
    if group.layer in plan.dropped_layers:
        return np.zeros(group.n_units, dtype=bool)
    if group.name not in plan.kept:
        return np.ones(group.n_units, dtype=bool)
    stays = np.zeros(group.n_units, dtype=bool)
    stays[np.array(plan.kept[group.name], dtype=np.int64)] = True
    return stays


def _units(dense: ModelLayout, plan: PruningPlan, kind: str) -> Panel:
    groups = [group for group in dense.groups if group.kind == kind]
    edges = _edges(max(group.n_units for group in groups))
    kept = np.full((dense.n_layers, len(edges) - 1), np.nan)
    words = [""] * dense.n_layers
    for group in groups:
        stays = mask(group, plan)
        kept[group.layer] = _shares(stays, edges)
        words[group.layer] = f"{np.count_nonzero(stays)}/{len(stays)}"
    return Panel(
        title=_title(kind),
        unit=one(kind),
        edges=edges,
        kept=kept,
        words=_with_dropped(words, plan),
    )


def _experts(dense: ModelLayout, plan: PruningPlan) -> Panel:
    """Return experts across; the share is that of an expert's channels, none where it leaves."""
    channels = [group for group in dense.groups if group.kind == "expert_channels"]
    whole = {group.layer: group for group in dense.groups if group.kind == "experts"}
    rows: dict[int, list[float]] = {}
    for group in channels:
        rows.setdefault(group.layer, []).append(float(mask(group, plan).mean()))
    for layer, group in whole.items():
        shares = np.array(rows.get(layer, [1.0] * group.n_units))
        rows[layer] = list(np.where(mask(group, plan), shares, 0.0))
    edges = _edges(max(map(len, rows.values())))
    kept = np.full((dense.n_layers, len(edges) - 1), np.nan)
    words = [""] * dense.n_layers
    for layer, shares_of_layer in rows.items():
        values = np.array(shares_of_layer)
        kept[layer] = _shares(values, edges)
        stay = values[values > 0.0]
        inside = f", {100 * stay.mean():.0f} %" if len(stay) and stay.min() < 1.0 else ""
        words[layer] = f"{len(stay)}/{len(values)}{inside}"
    return Panel(
        title="Experts, by channels kept" if channels else "Experts",
        unit="expert",
        edges=edges,
        kept=kept,
        words=_with_dropped(words, plan),
    )


def _edges(widest: int) -> Floats:
    return np.floor(np.linspace(0, widest, min(widest, N_BINS) + 1))


def _shares(values: NDArray[np.generic], edges: Floats) -> Floats:
    """Return the mean of the values between two edges each; NaN beyond the last value."""
    ends = np.minimum(edges.astype(np.int64), len(values))
    sums = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
    inside = np.diff(ends)
    shares = np.full(len(inside), np.nan)
    np.divide(np.diff(sums[ends]), inside, out=shares, where=inside > 0)
    return shares


def _title(kind: str) -> str:
    words = KINDS[kind]
    return words[:1].upper() + words[1:]


def _with_dropped(words: Sequence[str], plan: PruningPlan) -> tuple[str, ...]:
    return tuple("" if i in plan.dropped_layers else text for i, text in enumerate(words))

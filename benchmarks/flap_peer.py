"""FLAP as its authors run it (arXiv:2312.11983, "WIFV" and "AL-AM"), on our layouts and surgery.

The fluctuation of every input channel of an output projection, its variance times the squared norm
of its column, is standardised within its layer and kind; attention, whose fluctuations the
authors' script squares before, is then averaged over a head. Heads and channels of all layers
stand in one order, and the least leave until the ratio of parameters is reached; what they gave on
average, by the means of the dense model, goes into biases. Our scope ``standardised`` ranks alike,
but standardises whole heads, as a criterion scores a unit and not its channels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qpruner_core.domain.layout import GroupLayout, ModelLayout
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.models.inputs import InputStats, input_statistics, output_projections
from qpruner_core.pruning.compensation import bias_values, with_biases
from qpruner_core.pruning.surgery import prune_


@torch.no_grad()
def flap_(model: nn.Module, layout: ModelLayout, ids: torch.Tensor, ratio: float) -> None:
    """Prune a model by FLAP, in place.

    Args:
        model: Decoder with plain Linears.
        layout: Its layout.
        ids: Calibration tokens, (n, length).
        ratio: Share of the parameters of the decoder layers that is to leave.
    """
    projections = output_projections(layout)
    stats = input_statistics(model, layout, ids, list(projections.values()))
    scores = {
        group.name: standardised(
            group,
            stats[projections[group.name]],
            model.get_parameter(f"{projections[group.name]}.weight"),
        )
        for group in layout.groups
    }
    plan = with_biases(layout, leaving(layout, scores, ratio))
    prune_(model, layout, plan, bias_values(model, layout, plan, stats))


def standardised(
    group: GroupLayout, stats: InputStats, weight: torch.Tensor
) -> NDArray[np.float64]:
    """Return the score of every unit of a group, (n_units,)."""
    energy = weight.double().pow(2).sum(dim=0)  # (in,)
    fluctuation = stats.deviations.double() / stats.n_tokens * energy
    if group.kind == "kv_heads":
        fluctuation = fluctuation.pow(2)
    on_one_scale = (fluctuation - fluctuation.mean()) / fluctuation.std()
    found: NDArray[np.float64] = on_one_scale.view(group.n_units, -1).mean(dim=1).numpy()
    return found


def leaving(
    layout: ModelLayout, scores: dict[str, NDArray[np.float64]], ratio: float
) -> PruningPlan:
    """Return the plan that drops the least units of all layers until the ratio is reached; one
    unit stays in every group.
    """
    price = {group.name: group.unit_parameters for group in layout.groups}
    units = sorted(
        (score, name, unit)
        for name, values in scores.items()
        for score, unit in zip(np.sort(values)[:-1], np.argsort(values)[:-1], strict=True)
    )
    left = {name: set(range(len(values))) for name, values in scores.items()}
    target = ratio * sum(layout.layer_parameters)
    for _, name, unit in units:
        if target < price[name] / 2:
            break
        left[name].discard(int(unit))
        target -= price[name]
    return PruningPlan(kept={name: tuple(sorted(stay)) for name, stay in left.items()})

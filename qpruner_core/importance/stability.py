"""Whether a ranking of layers comes out again on other text; reported, not assumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qpruner_core.catalog import check_layer_signal
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.spec import ImportanceSpec
from qpruner_core.importance.agreement import standard_ranks
from qpruner_core.importance.passes import forward_pass
from qpruner_core.importance.scoring import create, finite
from qpruner_core.models.inputs import require_text

if TYPE_CHECKING:
    from qpruner_core.registry import OptionValue

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSignal:
    """A layer signal and how much its ranking can be trusted."""

    values: NDArray[np.float32]
    """Value per layer, (n_layers,), finite, >= 0."""
    stability: float | None
    """See `half_agreement`; in [-1, 1]. None where the signal draws no positions to resample, or
    there is one layer.
    """


def measured_signal(
    name: str,
    model: nn.Module,
    layout: ModelLayout,
    ids: torch.Tensor,
    options: Mapping[str, OptionValue] | None = None,
    seed: int = 0,
) -> MeasuredSignal:
    """Return one layer signal of a model with the stability of its ranking, in one forward pass.

    Arguments and errors are those of `scoring.layer_signal`.
    """
    check_layer_signal(name)
    require_text(ids)
    ids = ids.to(next(model.parameters()).device)
    spec = ImportanceSpec(criteria=(name,), options={name: options or {}}, seed=seed)
    signal = create(name, spec)
    forward_pass(model, layout, ids, [signal], lambda: None)
    values = finite(name, "the layers", signal.values())
    resampled = getattr(signal, "stability", None)
    return MeasuredSignal(values=values, stability=resampled() if resampled else None)


def half_agreement(
    estimate: Callable[[Integers], Floats], n_samples: int, n_resamples: int, seed: int
) -> float | None:
    """Return the mean Spearman correlation between rankings by two random halves of the samples.

    Each time the samples are split anew, so that both halves are drawn without replacement and
    share nothing. A bootstrap would draw samples twice, which an estimator of nearest neighbours
    takes for certainty; and two overlapping resamples agree for what they share. All samples
    together rank better than half of them, so the figure is on the careful side.

    Args:
        estimate: Indices of samples -> value per layer, (n_layers,).
        n_samples: Samples in all.
        n_resamples: Splits; >= 1.
        seed: Seed of the splits.

    Returns:
        In [-1, 1]; 0 where a half gives all layers the same value; None for fewer than two layers
        or four samples.
    """
    if n_samples < 4:
        return None
    rng = np.random.default_rng(seed)
    half = n_samples // 2
    found = []
    for _ in range(n_resamples):
        order = rng.permutation(n_samples)
        one, other = (estimate(np.sort(part)) for part in (order[:half], order[half:]))
        if len(one) < 2:
            return None
        found.append(rank_correlation(one, other))
    return float(np.mean(found))


def rank_correlation(one: Floats, other: Floats) -> float:
    """Return Spearman's correlation of two rankings, tied values at their mean rank; 0 where one
    of them is all ties.
    """
    correlation = float(standard_ranks(one) @ standard_ranks(other))
    return float(np.clip(correlation, -1.0, 1.0)) if np.isfinite(correlation) else 0.0

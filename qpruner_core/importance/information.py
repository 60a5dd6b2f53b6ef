"""What all estimators of mutual information share: positions, dimension reduction, repetition.

An estimator is a function of two arrays; what is here brings a model's layers and predictions into
that form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from qpruner_core.importance.stability import half_agreement

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_CLASSES = 64
"""Predicted tokens kept apart; rarer ones share one class."""
_LEAST_SPREAD = 1e-5
"""Standard deviation of a component over that of the first; rounding of float32 stays below."""
_LOGIT_ROWS = 64
"""Positions whose logits exist at a time: 32 MB in float32 at a vocabulary of 128 thousand."""


class InformationSignal(ABC):
    """I(X_l; Y) per layer, X_l the layer's output and Y what the model then predicts.

        I(X; Y) = E log(p(x, y) / (p(x) p(y)))

    in nats, >= 0. The signal of the QPruner paper for the precision of a layer.

    ``n_samples`` token positions are drawn without replacement, none of them the first of its
    sequence: the attention sink there has states hundreds of times larger than any other. X_l
    (n_samples, H) is reduced by PCA to ``n_components`` columns of variance 1. As no function of
    X_l can know more of Y than X_l, what is estimated is a lower bound of I(X_l; Y). How Y is made
    of the logits and how the information is estimated is each entry's own; an estimate below zero
    counts as zero.

    Reference: QPruner, arXiv:2412.11629, which estimates I(X_l; Y) with Y the prediction on the
    target task. Here Y is the next token on calibration text, so that the signal needs no labels;
    reduction and choice of positions are ours.

    Memory: n_layers x n_samples x H values of the model's dtype, on the host.
    """

    def __init__(self, n_components: int, n_samples: int, seed: int) -> None:
        self._n_components = n_components
        self._n_samples = n_samples
        self._seed = seed

    @abstractmethod
    def observe(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what is kept of logits (n, V), on their device: (n,) or (n, anything)."""

    @abstractmethod
    def outputs(self, observed: NDArray[Any]) -> NDArray[Any]:
        """Return Y for everything kept, samples first, in the order given."""

    @abstractmethod
    def estimate(self, components: Floats, outputs: NDArray[Any]) -> float:
        """Return the information between components (n, d) and outputs (n, ...); nats.

        The samples may be a part of those drawn.
        """

    def begin(self, n_layers: int, n_sequences: int, length: int) -> None:
        """Forget what was seen and draw the positions to look at."""
        sink = 1 if length > 1 else 0
        usable = n_sequences * (length - sink)
        rng = np.random.default_rng(self._seed)
        drawn = np.sort(rng.choice(usable, size=min(self._n_samples, usable), replace=False))
        # (n_samples, 2): sequence and token
        self._positions = np.stack(np.divmod(drawn, length - sink), axis=1) + np.array([0, sink])
        self._states: list[list[torch.Tensor]] = [[] for _ in range(n_layers)]
        self._observed: list[torch.Tensor] = []
        self._reduced: tuple[list[Floats], NDArray[Any]] | None = None

    def see_layer(self, layer: int, first: int, before: torch.Tensor, after: torch.Tensor) -> None:
        """Keep the output of a layer at the drawn positions of this micro-batch."""
        self._states[layer].append(self._at_positions(first, after).cpu())

    def see_output(
        self, first: int, hidden: torch.Tensor, logits_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """Keep what is predicted at the drawn positions; logits are made for these alone, few at a
        time.
        """
        for states in torch.split(self._at_positions(first, hidden), _LOGIT_ROWS):
            if len(states):
                self._observed.append(self.observe(logits_of(states)).cpu())

    def values(self) -> NDArray[np.float32]:
        """Return the mutual information of every layer, shape (n_layers,); nats, >= 0."""
        return self._estimates(np.arange(len(self._positions))).astype(np.float32)

    def stability(self, n_resamples: int = 10) -> float | None:
        """Return how well random halves of the positions agree on the ranking of the layers.

        See `stability.half_agreement`; None where there is only one layer to rank.
        """
        return half_agreement(self._estimates, len(self._positions), n_resamples, self._seed)

    def _estimates(self, samples: Integers) -> Floats:
        """Return the information of every layer, (n_layers,), as some of the samples tell it."""
        layers, outputs = self._components()
        return np.array(
            [max(0.0, self.estimate(layer[samples], outputs[samples])) for layer in layers]
        )

    def _components(self) -> tuple[list[Floats], NDArray[Any]]:
        """Return reduced states per layer, and Y; made once, and states are let go."""
        if self._reduced is None:
            layers = [
                standard_components(
                    torch.cat(states).float().numpy(), self._n_components, self._seed
                )
                for states in self._states
            ]
            self._reduced = layers, self.outputs(torch.cat(self._observed).numpy())
            self._states, self._observed = [], []
        return self._reduced

    def _at_positions(self, first: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return the states (n, H) at the drawn positions that lie in a micro-batch (B, T, H)."""
        rows = self._positions[:, 0]
        inside = self._positions[(rows >= first) & (rows < first + hidden.shape[0])]
        picked = torch.as_tensor(inside, device=hidden.device)
        return hidden[picked[:, 0] - first, picked[:, 1]]


def standard_components(states: NDArray[Any], n_components: int, seed: int) -> Floats:
    """Return the first principal components of hidden states, each with variance 1.

    Components smaller than `_LEAST_SPREAD` of the first are rounding noise, which would become as
    large as any other, and are left out; the first always stays.

    Args:
        states: Hidden states, (n_samples, H).
        n_components: Columns to keep; fewer come back when samples, features or directions that
            the states fill are fewer.
        seed: Seed of the randomised solver that large matrices get.
    """
    kept = min(n_components, *states.shape)
    pca = PCA(kept, whiten=True, random_state=seed)
    whitened: Floats = pca.fit_transform(states.astype(np.float64))
    spread = np.sqrt(pca.explained_variance_)
    return whitened[:, : max(1, int((spread > _LEAST_SPREAD * spread[0]).sum()))]


def frequent_classes(tokens: Integers, least: int, most_classes: int = MAX_CLASSES) -> Integers:
    """Return class numbers (n,): frequent tokens by descending count, all others as the last.

    Args:
        tokens: Token ids, (n,).
        least: Samples that a class of its own must exceed.
        most_classes: Classes of their own at most.
    """
    values, inverse, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.lexsort((values, -counts))] = np.arange(len(values))
    n_classes = min(most_classes, int((counts > least).sum()))
    classes: Integers = np.minimum(ranks, n_classes)[inverse]
    return classes

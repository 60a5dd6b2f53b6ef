"""Mutual information between what a layer gives and what the model predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.feature_selection import mutual_info_classif

MAX_CLASSES = 64
"""Predicted tokens kept apart; rarer ones share one class."""


class MutualInformation:
    """I(X_l; Y) per layer, X_l the layer's output and Y the token the model then predicts.

        I(X; Y) = sum over y of the integral over x of p(x, y) log(p(x, y) / (p(x) p(y))) dx

    in nats, >= 0. The signal of the QPruner paper for the precision of a layer.

    Estimated on ``n_samples`` token positions drawn without replacement. X_l (n_samples, H) is
    reduced by PCA to ``n_components`` columns of variance 1; Y (n_samples,) is the most likely
    token, the most frequent ones as classes of their own and the rest as one. Each column is
    measured against Y by the nearest-neighbour estimator for a continuous and a discrete variable
    (Ross 2014, after Kraskov et al., arXiv:cond-mat/0305641), as
    `sklearn.feature_selection.mutual_info_classif` has it.

    The value of a layer is the *mean over its components* C_j. As no function of X_l can know
    more of Y than X_l, it is a lower bound: mean I(C_j; Y) <= I(X_l; Y) <= H(Y). Their sum would
    rank layers the same way, but counts what components share more than once and can exceed H(Y).

    Reference: QPruner, arXiv:2412.11629, which estimates I(X_l; Y) with Y the prediction on the
    target task. Here Y is the next token on calibration text, so the signal needs no labels; first
    positions are left out, as the attention sink there has states hundreds of times larger than
    any other; reduction and mean over components are ours.

    Memory: n_layers x n_samples x H values of the model's dtype, on the host.
    """

    def __init__(
        self, n_components: int = 4, n_neighbors: int = 3, n_samples: int = 1024, *, seed: int = 0
    ) -> None:
        self._n_components = n_components
        self._n_neighbors = n_neighbors
        self._n_samples = n_samples
        self._seed = seed

    def begin(self, n_layers: int, n_sequences: int, length: int) -> None:
        """Forget what was seen and draw the positions to look at."""
        sink = 1 if length > 1 else 0
        usable = n_sequences * (length - sink)
        rng = np.random.default_rng(self._seed)
        drawn = np.sort(rng.choice(usable, size=min(self._n_samples, usable), replace=False))
        # (n_samples, 2): sequence and token
        self._positions = np.stack(np.divmod(drawn, length - sink), axis=1) + np.array([0, sink])
        self._states: list[list[torch.Tensor]] = [[] for _ in range(n_layers)]
        self._predicted: list[torch.Tensor] = []

    def see_layer(self, layer: int, first: int, before: torch.Tensor, after: torch.Tensor) -> None:
        """Keep the output of a layer at the drawn positions of this micro-batch."""
        self._states[layer].append(self._at_positions(first, after).cpu())

    def see_output(
        self, first: int, hidden: torch.Tensor, logits_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """Keep the predicted tokens at the drawn positions; logits are made for these alone."""
        self._predicted.append(logits_of(self._at_positions(first, hidden)).argmax(dim=-1).cpu())

    def values(self) -> NDArray[np.float32]:
        """Return the mutual information of every layer, shape (n_layers,); nats, >= 0."""
        labels = frequent_classes(torch.cat(self._predicted).numpy(), 2 * self._n_neighbors)
        return np.array(
            [
                self._information(torch.cat(states).float().numpy(), labels)
                for states in self._states
            ],
            dtype=np.float32,
        )

    def _at_positions(self, first: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return the states (n, H) at the drawn positions that lie in a micro-batch (B, T, H)."""
        rows = self._positions[:, 0]
        inside = self._positions[(rows >= first) & (rows < first + hidden.shape[0])]
        picked = torch.as_tensor(inside, device=hidden.device)
        return hidden[picked[:, 0] - first, picked[:, 1]]

    def _information(self, states: NDArray[Any], labels: NDArray[np.int64]) -> float:
        if len(np.unique(labels)) < 2:  # a prediction that never changes holds no information
            return 0.0
        components = standard_components(states, self._n_components, self._seed)
        per_component = mutual_info_classif(
            components,
            labels,
            discrete_features=False,
            n_neighbors=self._n_neighbors,
            random_state=self._seed,
        )
        return float(per_component.mean())


def standard_components(states: NDArray[Any], n_components: int, seed: int) -> NDArray[np.float64]:
    """Return the first principal components of hidden states, each with variance 1.

    Args:
        states: Hidden states, (n_samples, H).
        n_components: Columns to keep; fewer come back when samples or features are fewer.
        seed: Seed of the randomised solver that large matrices get.
    """
    kept = min(n_components, *states.shape)
    pca = PCA(kept, whiten=True, random_state=seed)
    whitened: NDArray[np.float64] = pca.fit_transform(states.astype(np.float64))
    return whitened


def frequent_classes(
    tokens: NDArray[np.int64], least: int, most_classes: int = MAX_CLASSES
) -> NDArray[np.int64]:
    """Return class numbers (n,): frequent tokens by descending count, all others as the last.

    Args:
        tokens: Token ids, (n,).
        least: Samples that a class of its own must exceed: the estimator needs neighbours of the
            same class.
        most_classes: Classes of their own at most.
    """
    values, inverse, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.lexsort((values, -counts))] = np.arange(len(values))
    n_classes = min(most_classes, int((counts > least).sum()))
    classes: NDArray[np.int64] = np.minimum(ranks, n_classes)[inverse]
    return classes

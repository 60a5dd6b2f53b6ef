"""Block Influence: how far a layer turns the residual stream."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional


class BlockInfluence:
    """One minus the mean cosine between what enters and what leaves a layer.

        BI(l) = 1 - mean over tokens of x_l . y_l / (|x_l| |y_l|),    dimensionless, in [0, 2]

    with x_l, y_l of shape (H,) the residual stream before and after layer l. A layer near 0 passes
    its input on and may be the first to go. Reference: Men et al., ShortGPT, arXiv:2403.03853, eq.
    1. Cosines are taken in float32.
    """

    def begin(self, n_layers: int, n_sequences: int, length: int) -> None:
        """Forget what was seen and expect that many sequences of ``length`` tokens."""
        self._cosines = np.zeros(n_layers)
        self._n_tokens = n_sequences * length

    def see_layer(self, layer: int, first: int, before: torch.Tensor, after: torch.Tensor) -> None:
        """Add up the cosines of a micro-batch; both tensors (B, T, H)."""
        cosines = functional.cosine_similarity(before.float(), after.float(), dim=-1)
        self._cosines[layer] += cosines.double().sum().item()

    def see_output(
        self, first: int, hidden: torch.Tensor, logits_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """Block Influence does not ask what the model predicts."""

    def values(self) -> NDArray[np.float32]:
        """Return the influence of every layer, shape (n_layers,); rounding below 0 is cut off."""
        return np.maximum(0.0, 1.0 - self._cosines / self._n_tokens).astype(np.float32)

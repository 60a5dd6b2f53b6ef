"""What the model as pruned predicts, and how far another prediction of the same tokens is from it.

    KL(p || q) = sum over tokens v of p_v (log p_v - log q_v)        nats, >= 0

with p the reference and q the model with something changed; one divergence per predicted position.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from qpruner_core.models.trunk import final_logits

HELD_BYTES = 256 * 2**20
"""Most bytes of reference probabilities that are held; the others are computed again."""


class Reference:
    """The next-token distributions of a batch under the model as it stands now.

    Final hidden states of the whole batch are held, and probabilities in float32 or wider as far
    as `HELD_BYTES` go: all of them at vocabularies of some thousand tokens. Of the sequences
    beyond, logits are computed anew whenever they are asked for, one sequence at a time, so that
    memory does not grow with the vocabulary. The final norm and head must stay as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        hidden: torch.Tensor,
        ids: torch.Tensor,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        """Take the reference's hidden states after the last layer.

        Args:
            model: Whose final norm and head are used.
            hidden: ``(B, T, H)``.
            ids: Token ids ``(B, T)``, T >= 2; token t is predicted from the states at t - 1.
            held_bytes: As `HELD_BYTES`.
        """
        self._model, self._hidden, self._ids = model, hidden, ids
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []
        left = held_bytes
        losses = []
        for states, targets in zip(hidden, ids, strict=True):
            logs = self._logs(states)
            losses.append(_loss(logs, targets))
            left -= logs.nbytes
            if left >= 0:
                self._held.append(_with_negative_entropy(logs))
        self.loss = _sum(losses)
        """Sum over the sequences of their mean negative log-likelihood; nats per token."""

    def compare(self, hidden: torch.Tensor) -> tuple[float, float]:
        """Return the loss and the divergence of other hidden states after the last layer.

        Args:
            hidden: Of the same batch, ``(B, T, H)``.

        Returns:
            Two sums over the sequences: of the mean negative log-likelihood, and of the mean
            divergence from the reference; nats per token. Either may be no finite number.
        """
        losses, divergences = [], []
        for index, (states, targets) in enumerate(zip(hidden, self._ids, strict=True)):
            logs = self._logs(states)
            losses.append(_loss(logs, targets))
            divergences.append(_divergence(*self._sequence(index), logs))
        return _sum(losses), _sum(divergences)

    def _sequence(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return probabilities (T - 1, V) and the negative entropies (T - 1,) of one sequence."""
        if index < len(self._held):
            return self._held[index]
        return _with_negative_entropy(self._logs(self._hidden[index]))

    def _logs(self, states: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities (T - 1, V) in float32 or wider."""
        logits = final_logits(self._model, states[:-1])
        return functional.log_softmax(
            logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32)
        )


def _with_negative_entropy(logs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    probabilities = logs.exp()
    return probabilities, _dot(probabilities, logs)


def _loss(logs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.nll_loss(logs, targets[1:].to(logs.device))


def _divergence(
    probabilities: torch.Tensor, negative_entropy: torch.Tensor, logs: torch.Tensor
) -> torch.Tensor:
    # Both sums are taken in the same order, so that equal predictions differ by exactly nothing.
    return (negative_entropy - _dot(probabilities, logs)).double().mean()


def _dot(probabilities: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    """Return the sum of p log q of every position, (T - 1,)."""
    # A log-probability may be minus infinity where p is 0, of tokens that the model rules out.
    finite = logs.clamp_min(torch.finfo(logs.dtype).min)
    product: torch.Tensor = torch.linalg.vecdot(probabilities, finite)
    return product


def _sum(values: list[torch.Tensor]) -> float:
    """Return the sum of single values; the device is waited for once."""
    return float(torch.stack(values).double().sum())

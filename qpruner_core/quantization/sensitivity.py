"""Sensitivity: what the loss gains when one search unit alone is stored at a precision.

    s_u(b) = loss(only unit u at precision b) - loss(all at the weights as pruned)

Hidden states before the unit's first layer do not depend on its precision, so they are computed
once and every cell runs the layers from there on: on average half of the forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch

from qpruner_core.domain.progress import OnProgress, Progress, silent
from qpruner_core.domain.record import SensitivityCell
from qpruner_core.errors import DataTooShortError, NonFiniteLossError
from qpruner_core.models.trunk import LayerInputs, first_inputs, run_layers, sequence_losses
from qpruner_core.quantization.bank import Bank

_TOKENS_PER_BATCH = 4096
"""Tokens whose hidden states are held at a time."""

Units = Mapping[str, tuple[str, ...]]
"""Search unit -> names of its Linears, in forward order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityTable:
    """All cells, and the loss they are measured against."""

    cells: tuple[SensitivityCell, ...]
    """Unit by unit in the order given, precisions in the order of the bank."""
    loss_16_bit: float
    """Loss of the model as pruned, on the same tokens; nats per token."""


def measure(
    bank: Bank, units: Units, ids: torch.Tensor, on_progress: OnProgress = silent
) -> SensitivityTable:
    """Measure every unit at every precision of the bank; the model ends as it was pruned.

    Args:
        bank: Candidates of the model.
        units: Search unit -> Linear names, in forward order.
        ids: Token ids ``(n_sequences, length)``, length >= 2.
        on_progress: Told after every cell of every batch.

    Raises:
        DataTooShortError: There are no token ids.
        NonFiniteLossError: The model as pruned gives a loss that is not a number.
    """
    if ids.ndim != 2 or ids.shape[0] == 0 or ids.shape[1] < 2:
        raise DataTooShortError(
            f"Sensitivities were asked for on token ids of shape {tuple(ids.shape)}; at least one "
            f"sequence of 2 tokens is needed. Give more calibration text or shorter sequences."
        )
    batches = torch.split(ids, max(1, _TOKENS_PER_BATCH // ids.shape[1]))
    pairs = [(unit, name) for unit in units for name in bank.precisions]
    sums = dict.fromkeys(pairs, 0.0)
    walk = _Walk(bank, units, on_progress, total=len(batches) * len(pairs))
    reference = sum(walk.run(batch, sums) for batch in batches) / ids.shape[0]
    if not isfinite(reference):
        raise NonFiniteLossError(
            f"The pruned model gives a loss of {reference} on the calibration text; a finite "
            f"number is needed to measure sensitivities. Lower the pruning ratio."
        )
    cells = tuple(
        SensitivityCell(
            unit=unit, precision=name, loss_increase=sums[unit, name] / ids.shape[0] - reference
        )
        for unit, name in pairs
    )
    return SensitivityTable(cells=cells, loss_16_bit=reference)


class _Walk:
    """One pass down the layers per batch, stopping at each layer to try its units."""

    def __init__(self, bank: Bank, units: Units, on_progress: OnProgress, total: int) -> None:
        self._bank = bank
        self._units = units
        self._on_progress = on_progress
        self._done, self._total = 0, total
        layers = {linear.name: linear.layer for linear in bank.layout.linears}
        self._starting: dict[int, list[str]] = {}
        for unit, linears in units.items():
            first = min(layers[name] for name in linears)
            self._starting.setdefault(first, []).append(unit)

    @torch.no_grad()
    def run(self, ids: torch.Tensor, sums: dict[tuple[str, str], float]) -> float:
        """Add every cell's summed loss over the sequences; return that of the model as pruned."""
        bank = self._bank
        bank.restore()
        ids = ids.to(bank.device.torch)
        inputs = first_inputs(bank.model, bank.layout, ids)
        for layer in range(bank.layout.n_layers):
            for unit in self._starting.get(layer, ()):
                for precision in bank.precisions:
                    sums[unit, precision] += self._cell(unit, precision, inputs, ids, layer)
            hidden = run_layers(bank.model, bank.layout, inputs, layer, layer + 1)
            inputs = inputs.at(hidden)
        return float(sequence_losses(bank.model, inputs.hidden, ids).double().sum())

    def _cell(
        self, unit: str, precision: str, inputs: LayerInputs, ids: torch.Tensor, layer: int
    ) -> float:
        bank = self._bank
        try:
            for name in self._units[unit]:
                bank.set(name, precision)
            hidden = run_layers(bank.model, bank.layout, inputs, layer)
            loss = float(sequence_losses(bank.model, hidden, ids).double().sum())
        finally:
            for name in self._units[unit]:
                bank.set(name, None)
        self._done += 1
        self._on_progress(
            Progress(
                step="quantize",
                done=self._done,
                total=self._total,
                message=f"sensitivity of {unit} at {precision}",
            )
        )
        return loss

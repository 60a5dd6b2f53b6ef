"""Sensitivity of the further pruning levels: what the loss gains when one layer alone is pruned by
another ratio and one unit of it is stored at a precision.

    s_u(l, b) = [loss(layer of u at level l, u at b) - loss(layer of u at level l)]
                + p_u [loss(layer of u at level l) - loss(all at level 0)]

where p_u is the unit's share of the parameters of its layer at level 0. A layer is pruned as a
whole, so that units finer than a layer share out what that costs: the sum over the units of a
layer holds it once. Where a layer is one unit, the sum is the loss itself minus the reference.

The reference is the model as the run pruned it; at a lower ratio a sensitivity is below zero.
Hidden states before the layer do not depend on it, and are computed once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

import torch

from qpruner_core.domain.progress import OnProgress, Progress, silent
from qpruner_core.domain.record import SensitivityCell
from qpruner_core.models.trunk import LayerInputs, first_inputs, run_layers, sequence_losses
from qpruner_core.quantization.level_bank import LevelBank
from qpruner_core.quantization.sensitivity import BROKEN, Units

TOKENS_PER_BATCH = 4096
"""Tokens whose hidden states are held at a time."""


@dataclass(frozen=True, slots=True)
class _Case:
    """One model to be measured: a layer at a level, one of its units at a precision."""

    layer: int
    level: int
    unit: str | None = None
    """None: all Linears of the layer as they were pruned."""
    precision: str | None = None


def measure_levels(
    bank: LevelBank, units: Units, ids: torch.Tensor, on_progress: OnProgress = silent
) -> tuple[SensitivityCell, ...]:
    """Measure every unit at every further level and precision; the model ends at level 0.

    Args:
        bank: All levels with their candidates.
        units: Search unit -> Linear names, in forward order; each lies in one layer.
        ids: Token ids ``(n_sequences, length)``, length >= 2.
        on_progress: Told after every case of every batch.

    Returns:
        Cells of levels 1 and up, level by level, then unit by unit in the order given, precisions
        in the order of the bank; they carry no divergence (see `SensitivityCell.kl`), as a model
        that is pruned less differs from the reference for the better. A loss that is no finite
        number counts as `sensitivity.BROKEN`.
    """
    walk = _Walk(bank, units, on_progress)
    batches = torch.split(ids, max(1, TOKENS_PER_BATCH // ids.shape[1]))
    walk.total = len(walk.sums) * len(batches)
    reference = sum(walk.run(batch) for batch in batches) / ids.shape[0]
    losses = {case: total / ids.shape[0] for case, total in walk.sums.items()}
    shares = _shares(bank, units)
    cells = []
    for level in range(1, bank.n_levels):
        for unit, layer in walk.layer_of.items():
            pruned = losses.get(_Case(layer, level), reference)
            # Where a layer is one unit its own 16-bit loss cancels out and was not measured.
            base = pruned - shares[unit] * (pruned - reference)
            for precision in bank.precisions:
                gain = losses[_Case(layer, level, unit, precision)] - base
                cells.append(
                    SensitivityCell(
                        unit=unit,
                        precision=precision,
                        loss_increase=min(gain, BROKEN) if isfinite(gain) else BROKEN,
                        level=level,
                    )
                )
    return tuple(cells)


def _shares(bank: LevelBank, units: Units) -> dict[str, float]:
    """Return every unit's share of the parameters of its layer's Linears at level 0."""
    sizes = {linear.name: linear.parameters for linear in bank.layout.linears}
    totals = [0] * bank.layout.n_layers
    for linear in bank.layout.linears:
        totals[linear.layer] += linear.parameters
    layers = {linear.name: linear.layer for linear in bank.layout.linears}
    return {
        unit: sum(sizes[name] for name in names) / totals[layers[names[0]]]
        for unit, names in units.items()
    }


class _Walk:
    """One pass down the layers of level 0 per batch, stopping at each to try its other levels."""

    def __init__(self, bank: LevelBank, units: Units, on_progress: OnProgress) -> None:
        self._bank, self._units, self._on_progress = bank, units, on_progress
        layers = {linear.name: linear.layer for linear in bank.layout.linears}
        self.layer_of = {unit: layers[names[0]] for unit, names in units.items()}
        self.sums = dict.fromkeys(self._cases(), 0.0)
        """Case -> its loss summed over the sequences so far."""
        self.total, self._done = 0, 0

    def _cases(self) -> Iterator[_Case]:
        bank = self._bank
        for layer in range(bank.layout.n_layers):
            members = [unit for unit, own in self.layer_of.items() if own == layer]
            for level in range(1, bank.n_levels):
                if len(members) > 1:
                    yield _Case(layer, level)
                for unit in members:
                    for precision in bank.precisions:
                        yield _Case(layer, level, unit, precision)

    @torch.no_grad()
    def run(self, ids: torch.Tensor) -> float:
        """Add every case's summed loss over the sequences; return that of level 0."""
        bank = self._bank
        bank.restore()
        ids = ids.to(bank.device.torch)
        inputs = first_inputs(bank.model, bank.layout, ids)
        for layer in range(bank.layout.n_layers):
            for case in self.sums:
                if case.layer == layer:
                    self.sums[case] += self._loss(case, inputs, ids)
            bank.set_level(layer, 0)
            inputs = inputs.at(run_layers(bank.model, bank.layout, inputs, layer, layer + 1))
        return float(sequence_losses(bank.model, inputs.hidden, ids).double().sum())

    def _loss(self, case: _Case, inputs: LayerInputs, ids: torch.Tensor) -> float:
        bank, names = self._bank, self._units[case.unit] if case.unit is not None else ()
        try:
            bank.set_level(case.layer, case.level)
            for name in names:
                bank.set(name, case.precision)
            hidden = run_layers(bank.model, bank.layout, inputs, case.layer)
            loss = float(sequence_losses(bank.model, hidden, ids).double().sum())
        finally:
            for name in names:
                bank.set(name, None)
            bank.set_level(case.layer, 0)
        self._done += 1
        words = f"layer {case.layer} at pruning level {case.level}"
        if case.unit is not None:
            words = f"sensitivity of {case.unit} at pruning level {case.level}, {case.precision}"
        self._on_progress(
            Progress(step="quantize", done=self._done, total=self.total, message=words)
        )
        return loss

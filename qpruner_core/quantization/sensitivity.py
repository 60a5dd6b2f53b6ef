"""Sensitivity: what is lost when one search unit alone is stored at a precision.

    s_u(b) = loss(only unit u at precision b) - loss(all at the weights as pruned)
    k_u(b) = mean over positions of KL(p || q),   p as pruned, q with only unit u at precision b

both over the same predicted tokens, and both from the same pass: a cell runs the layers once and
makes its logits once. Hidden states before the unit's first layer do not depend on its precision,
so they are computed once and every cell runs the layers from there on: on average half of the
forward pass. The reference is one pass more per batch, or two where the states before all layers
are too many to hold (see `reference` for what is held of its predictions).

Within a layer nothing is reused: the attention before an MLP's unit is a third of one layer, out
of all the layers that its cells run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, cast

import torch

from qpruner_core.domain.progress import OnProgress, Progress, silent
from qpruner_core.domain.record import SensitivityCell
from qpruner_core.errors import DataTooShortError, NonFiniteLossError
from qpruner_core.models.trunk import LayerInputs, first_inputs, run_layers
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.reference import Reference

_TOKENS_PER_BATCH = 4096
"""Tokens whose hidden states are held at a time."""
_STATE_BYTES = 256 * 2**20
"""Most bytes of the states before all layers that are held; beyond, they are computed twice."""
BROKEN = 1000.0
"""What a cell counts as whose loss or divergence is no finite number; nats per token. A uniform
guess over 128 thousand tokens loses 12, so no front takes such a cell while it has a choice.
"""

Units = Mapping[str, tuple[str, ...]]
"""Search unit -> names of its Linears, in forward order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityTable:
    """All cells, and the loss they are measured against."""

    cells: tuple[SensitivityCell, ...]
    """Unit by unit in the order given, precisions in the order of the bank."""
    loss_16_bit: float
    """Loss of the model as pruned, on the same tokens; nats per token."""


@dataclass(slots=True)
class _Sums:
    """What one cell has come to so far, summed over sequences; nats per token."""

    loss: float = 0.0
    kl: float = 0.0


def measure(
    bank: Bank, units: Units, ids: torch.Tensor, on_progress: OnProgress = silent
) -> SensitivityTable:
    """Measure every unit at every precision of the bank; the model ends as it was pruned.

    A precision that overflows in some unit does not end the measurement: a cell whose loss or
    divergence is no finite number has both at `BROKEN`. A cell that changes no weight costs
    nothing and is exactly zero.

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
    sums = {(unit, name): _Sums() for unit in units for name in bank.precisions}
    walk = _Walk(bank, units, on_progress, total=len(batches) * len(sums))
    reference = sum(walk.run(batch, sums) for batch in batches) / len(ids)
    cells = tuple(
        _cell(unit, precision, found, reference, len(ids))
        for (unit, precision), found in sums.items()
    )
    return SensitivityTable(cells=cells, loss_16_bit=reference)


def _cell(
    unit: str, precision: str, sums: _Sums, reference: float, n_sequences: int
) -> SensitivityCell:
    is_finite = isfinite(sums.loss) and isfinite(sums.kl)
    return SensitivityCell(
        unit=unit,
        precision=precision,
        loss_increase=min(sums.loss / n_sequences - reference, BROKEN) if is_finite else BROKEN,
        # Rounding may leave a little less than nothing of predictions that hardly differ.
        kl=min(max(0.0, sums.kl / n_sequences), BROKEN) if is_finite else BROKEN,
    )


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
    def run(self, ids: torch.Tensor, sums: Mapping[tuple[str, str], _Sums]) -> float:
        """Add every cell's sums over the sequences; return the loss of the model as pruned, summed
        likewise.

        Raises:
            NonFiniteLossError: That loss is not a number.
        """
        bank = self._bank
        bank.restore()
        ids = ids.to(bank.device.torch)
        inputs = first_inputs(bank.model, bank.layout, ids)
        final, before = self._reference_states(inputs)
        reference = Reference(bank.model, final, ids)
        if not isfinite(reference.loss):
            raise NonFiniteLossError(
                f"The pruned model gives a loss of {reference.loss} on the calibration text; a "
                f"finite number is needed to measure sensitivities. Lower the pruning ratio."
            )
        # The range comes first: no layer is run behind which no unit begins.
        for layer, hidden in zip(range(max(self._starting) + 1), before, strict=False):
            at = inputs.at(hidden)
            for unit in self._starting.get(layer, ()):
                for precision in bank.precisions:
                    self._try(unit, precision, at, layer, reference, sums[unit, precision])
        return reference.loss

    def _reference_states(
        self, inputs: LayerInputs
    ) -> tuple[torch.Tensor, Iterable[torch.Tensor]]:
        """Return the states after the last layer of the model as pruned, and those before every
        layer: held where `_STATE_BYTES` allow, else to be computed again on the way.
        """
        n_layers = self._bank.layout.n_layers
        held: list[torch.Tensor] = []
        final = inputs.hidden
        for final in self._states(inputs):
            if n_layers * final.nbytes <= _STATE_BYTES:
                held.append(final)
        return final, held or self._states(inputs)

    def _states(self, inputs: LayerInputs) -> Iterator[torch.Tensor]:
        """Yield the states before every layer, each run when the next is asked for, and after the
        last.
        """
        yield inputs.hidden
        for layer in range(self._bank.layout.n_layers):
            hidden = run_layers(self._bank.model, self._bank.layout, inputs, layer, layer + 1)
            inputs = inputs.at(hidden)
            yield hidden

    def _try(
        self,
        unit: str,
        precision: str,
        inputs: LayerInputs,
        layer: int,
        reference: Reference,
        sums: _Sums,
    ) -> None:
        """Add what one unit at one precision gives on a batch; ``inputs`` are those before the
        layer.
        """
        bank, names = self._bank, self._units[unit]
        loss, kl = reference.loss, 0.0
        try:
            found = self._weights(names)
            for name in names:
                bank.set(name, precision)
            if self._weights(names) != found:  # bf16 of a model that ships in it changes nothing
                loss, kl = reference.compare(run_layers(bank.model, bank.layout, inputs, layer))
        finally:
            for name in names:
                bank.set(name, None)
        sums.loss += loss
        sums.kl += kl
        self._done += 1
        self._on_progress(
            Progress(
                step="quantize",
                done=self._done,
                total=self._total,
                message=f"sensitivity of {unit} at {precision}",
            )
        )

    def _weights(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Return what tells the weights apart that Linears show now: module and memory."""
        modules = [self._bank.model.get_submodule(name) for name in names]
        return [(id(module), cast("Any", module).weight.data_ptr()) for module in modules]

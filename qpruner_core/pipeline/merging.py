"""What of a recovery goes into an exported folder, and what that makes of its weights.

Beside the weights an adapter changes nothing, unless weights were shifted for it: then it belongs
to these. Merged, it is added to the dequantised weights, which the format then stores anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.spec import ExportSpec
from qpruner_core.errors import BadInputError, MergeRefusedError, NotReadyError
from qpruner_core.export.verify import reference_logits
from qpruner_core.pipeline.starting import Shifts, dense_module, take_, with_scalings
from qpruner_core.quantization.orientation import candidate
from qpruner_core.recovery.initialization import Factors
from qpruner_core.recovery.merging import beside, read_adapter, relative_error
from qpruner_core.recovery.shifts import read_shift


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Carried:
    """The recovery that goes into a folder, read from disk."""

    recovery: RecoveryOutcome | None = None
    """None: nothing does."""
    merged: bool = False
    """Added to the weights, instead of beside them."""
    adapter: Shifts = field(default_factory=dict)
    """Factors and scalings of the adapter; read only where it is merged."""
    shifts: Shifts = field(default_factory=dict)
    """What was taken from the weights before they were quantised."""

    @property
    def folder(self) -> Path | None:
        """Folder of the adapter to put beside the weights; None for none."""
        if self.recovery is None or self.merged:
            return None
        return Path(self.recovery.adapter)


def carried(
    record: RunRecord, trial: Trial, written: PrecisionPlan, layout: ModelLayout
) -> Carried:
    """Return what of the run's recovery goes into the folder of a plan.

    Args:
        record: The run; its spec says whether an adapter goes along or is merged.
        trial: The plan that is exported.
        written: What the format stores of it.
        layout: Layout of the pruned model.

    Raises:
        NotReadyError: A merge was asked for, and there is no adapter.
        BadInputError: A merge was asked for, and the adapter belongs to another plan.
    """
    spec, found = record.spec.export, record.recover
    if spec.merge_adapter:
        found = _mergeable(record, trial)
        adapter = with_scalings(read_adapter(Path(found.adapter)), layout, found.spec)
        shifts = _shifts(found, layout)
        return Carried(recovery=found, merged=True, adapter=adapter, shifts=shifts)
    if found is None or not found.adapter or not spec.include_adapter:
        return Carried()
    # An adapter belongs to the weights that it was trained on.
    if found.spec.trial != trial.number or written != trial.plan:
        return Carried()
    return Carried(recovery=found, shifts=_shifts(found, layout))


def shift_(model: nn.Module, shifts: Shifts) -> None:
    """Take from dense weights what was taken for an adapter, in place."""
    for name, (factors, scaling) in shifts.items():
        take_(dense_module(model, name), factors, scaling)


def merge_(
    model: nn.Module, plan: PrecisionPlan, adapter: Shifts, ids: torch.Tensor
) -> torch.Tensor:
    """Make every weight what the plan and the adapter stand for together, in place.

    Args:
        model: Pruned, its Linears dense and shifted as they were for the adapter; on the CPU in
            float32. Afterwards each weight is its dequantised candidate plus ``s B A``.
        plan: What the adapter was trained on.
        adapter: Factors and scalings.
        ids: Probe tokens (batch, tokens), int64.

    Returns:
        The logits with the adapter still apart, (batch, tokens, vocabulary).
    """
    for name, precision in plan.precisions.items():
        module = dense_module(model, name)
        module.weight.data = candidate(module, precision)
    with beside(model, adapter):
        apart = reference_logits(model, ids)
    for name, (factors, scaling) in adapter.items():
        take_(dense_module(model, name), Factors(a=factors.a, b=-factors.b), scaling)
    return apart


def accepted(apart: torch.Tensor, merged: torch.Tensor, spec: ExportSpec) -> float:
    """Return the relative error of the logits that a merge causes, if it may.

    Args:
        apart: Logits of weights and adapter apart.
        merged: Those of what the format stores.
        spec: The format and what is allowed.

    Raises:
        MergeRefusedError: The error is beyond what is allowed.
    """
    error = relative_error(apart, merged)
    if error <= spec.merge_tolerance:
        return error
    ways = (
        "merge into 16 bit (format hf_16bit) and quantise that folder again as a run of its own"
        if spec.format != "hf_16bit"
        else "allow more"
    )
    raise MergeRefusedError(
        f"Merging the adapter changes the logits by {100 * error:.2f} % of their norm, but at "
        f"most {100 * spec.merge_tolerance:.2f} % is allowed (--merge-tolerance). Keep the "
        f"adapter apart, or {ways}."
    )


def _mergeable(record: RunRecord, trial: Trial) -> RecoveryOutcome:
    found = record.recover
    if found is None or not found.adapter:
        raise NotReadyError(
            "The adapter was to be merged, but this run has none. Run its recovery first, or "
            "export without merging."
        )
    if found.spec.trial != trial.number:
        raise BadInputError(
            f"The adapter was to be merged into plan {trial.number}, but it was trained on plan "
            f"{found.spec.trial}. Export plan {found.spec.trial}, or recover plan {trial.number}."
        )
    return found


def _shifts(found: RecoveryOutcome, layout: ModelLayout) -> Shifts:
    if not found.shift:
        return {}
    return with_scalings(read_shift(Path(found.shift)), layout, found.spec)

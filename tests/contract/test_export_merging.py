"""Shifts and merges, over every family: what an adapter says apart, its sum says too."""

from __future__ import annotations

import copy
from typing import Any

import torch

from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.export.verify import reference_logits
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline.merging import merge_, shift_
from qpruner_core.pipeline.starting import shifts_of, starts_of, with_scalings
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.packing import pack_
from qpruner_core.recovery.merging import relative_error

IDS = torch.arange(2 * 8).reshape(2, 8)
SPEC = RecoverySpec(rank=2, alpha=3.0, initialization="pissa")


def test_the_sum_says_what_weights_and_adapter_say_apart(model: Any, layout: ModelLayout) -> None:
    model = model.float()
    plan = PrecisionPlan.uniform(layout, "int8")
    starts = starts_of(model, layout, plan, SPEC)
    shifts = with_scalings(shifts_of(starts), layout, SPEC)
    assert shifts.keys() == plan.precisions.keys()
    dense = reference_logits(model, IDS)
    shift_(model, shifts)
    without = relative_error(dense, reference_logits(model, IDS))
    # The adapter is what was taken: together they are the dense model, but for the precision.
    apart = merge_(model, plan, shifts, IDS)
    assert relative_error(dense, apart) < 0.3 * without
    assert relative_error(apart, reference_logits(model, IDS)) < 1e-4


def test_weights_packed_less_a_shift_are_those_of_a_bank_of_shifted_weights(
    model: Any, layout: ModelLayout
) -> None:
    model, device = model.float(), pick_device("cpu")
    plan = PrecisionPlan.uniform(layout, "int8")
    shifts = with_scalings(shifts_of(starts_of(model, layout, plan, SPEC)), layout, SPEC)
    packed = copy.deepcopy(model)
    shift_(model, shifts)
    bank = Bank(model, layout, ("int8",), device)
    bank.apply(plan)
    shift_(packed, shifts)
    pack_(packed, layout, plan, torch.float32)
    assert torch.equal(reference_logits(packed, IDS), reference_logits(bank.model, IDS))

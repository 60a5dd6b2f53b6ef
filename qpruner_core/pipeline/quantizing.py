"""The step *quantize*: what every layer tells of the prediction, and what every precision, and
every pruning level of a joint search, costs in every unit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from qpruner_core.catalog import CRITERIA
from qpruner_core.domain.joint import Level
from qpruner_core.domain.progress import OnProgress, Progress
from qpruner_core.domain.record import QuantizationOutcome, RunRecord, SensitivityCell
from qpruner_core.domain.spec import PruningSpec, SearchSpec
from qpruner_core.importance import measured_signal
from qpruner_core.pipeline.cutting import Cut
from qpruner_core.pipeline.joint import decide_levels, search_space
from qpruner_core.pipeline.materials import Materials
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.level_bank import LevelBank
from qpruner_core.quantization.level_sensitivity import measure_levels
from qpruner_core.quantization.sensitivity import measure

SIGNAL_TOKENS = 2048
"""Calibration tokens that divergences are measured on unless a search says otherwise."""


def measure_signals(
    record: RunRecord,
    materials: Materials,
    decide: Callable[[PruningSpec], Cut],
    on_progress: OnProgress,
) -> QuantizationOutcome:
    """Return the slot of *quantize*; the bank of the search stays in memory.

    Args:
        record: A run that has been pruned.
        materials: Its models.
        decide: Returns what a pruning spec removes from the dense model.
        on_progress: Told what is measured.
    """
    spec = record.spec.search
    levels = _levels(record, materials, decide, on_progress)
    pruned = materials.pruned()
    layout = materials.layout()
    ids = materials.corpus().calibration
    title = CRITERIA.entry(spec.information).title
    on_progress(Progress(step="quantize", done=0, total=1, message=f"{title} per layer"))
    options = record.spec.importance.options.get(spec.information, {})
    information = measured_signal(spec.information, pruned.model, layout, ids, options, spec.seed)
    bank = materials.search_bank(spec.precisions, levels)
    units = search_space(layout, spec, [level.layout for level in levels[1:]]).units
    # The bank of several levels has the face of that of one, and shows level 0 here.
    ids = ids[: n_signal_sequences(spec, *ids.shape)]
    measured = measure(cast("Bank", bank), units, ids, on_progress)
    further: tuple[SensitivityCell, ...] = ()
    if isinstance(bank, LevelBank):
        further = measure_levels(bank, units, ids, on_progress)
    bank.restore()
    return QuantizationOutcome(
        tie=spec.tie,
        precisions=spec.precisions,
        sensitivities=(*measured.cells, *further),
        loss_16_bit=measured.loss_16_bit,
        mutual_information=tuple(float(value) for value in information.values),
        device=pruned.device.name,
        levels=levels,
        information_stability=information.stability,
        information=spec.information,
        fixed=tuple(spec.fixed),
    )


def n_signal_sequences(spec: SearchSpec, n_sequences: int, length: int) -> int:
    """Return how many calibration sequences sensitivities are measured on; >= 1.

    A divergence has little noise: on the demo, 1,024 tokens rank the layers as 8,192 do (rank
    correlation 0.97; 1.00 with 2,048). A loss has much, so it gets everything unless the search
    says otherwise.
    """
    by_loss = spec.signal == "loss" or spec.joint != "none"
    tokens = spec.signal_tokens or (n_sequences * length if by_loss else SIGNAL_TOKENS)
    return min(n_sequences, max(1, tokens // length))


def _levels(
    record: RunRecord,
    materials: Materials,
    decide: Callable[[PruningSpec], Cut],
    on_progress: OnProgress,
) -> tuple[Level, ...]:
    """Return the pruning levels of a joint search, whose bank is in memory then; none of any
    other.
    """
    spec = record.spec.search
    if spec.joint == "none" or record.prune is None:
        return ()
    words = "the model at every pruning ratio"
    on_progress(Progress(step="quantize", done=0, total=1, message=words))
    levels = decide_levels(decide, record.prune, spec)
    # Now, as the levels are cut from the dense model, which was needed to decide them.
    materials.search_bank(spec.precisions, levels)
    return levels

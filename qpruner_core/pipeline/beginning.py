"""What a job is asked to do, settled before anything is computed."""

from __future__ import annotations

from dataclasses import replace

from qpruner_core.catalog import STRATEGIES
from qpruner_core.domain.adapters import adapter_ranks
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.record import STEPS, ModelCard, RunRecord
from qpruner_core.domain.spec import PruningSpec, RunSpec
from qpruner_core.errors import BadInputError
from qpruner_core.inspection import check_training, inspect_model
from qpruner_core.pipeline.joint import check_carried, check_joint, likely_layouts
from qpruner_core.pipeline.searching import check_budget
from qpruner_core.pruning.biases import with_biases
from qpruner_core.pruning.selection import select
from qpruner_core.quantization.shapes import check_shapes

_OWNERS = {
    "model": "load",
    "data": "load",
    "importance": "score",
    "pruning": "prune",
    "search": "search",
    "recovery": "recover",
    "export": "export",
}
"""Part of the spec -> the last step it decides; a job that begins later leaves it as it was."""


def merged(known: RunSpec, asked: RunSpec, first: int) -> RunSpec:
    """Return what the record says of the steps before the first, and the job of the others.

    Options are written out, so that equal searches are equal however they were asked for, and
    numbers of plans go with the search that they belong to.
    """
    kept = {
        part: getattr(known, part) for part, step in _OWNERS.items() if STEPS.index(step) < first
    }
    spec = replace(asked, **kept)
    options = STRATEGIES.options(spec.search.strategy, spec.search.options)
    spec = replace(spec, search=replace(spec.search, options=options))
    if first <= STEPS.index("search"):
        spec = replace(
            spec,
            recovery=replace(spec.recovery, trial=None),
            export=replace(spec.export, trial=None),
        )
    return spec


def _check_length(spec: RunSpec, card: ModelCard) -> None:
    """Refuse sequences that the model has no positions for."""
    longest = max(spec.data.sequence_length, spec.recovery.sequence_length)
    if longest > card.max_positions:
        raise BadInputError(
            f"Sequences of {longest} tokens were asked for, but {card.title} has positions for "
            f"{card.max_positions}. Choose a sequence length of at most that."
        )


def _check_objective(spec: RunSpec) -> None:
    """Refuse a search for accuracy where nothing is answered: all plans would be alike."""
    if spec.search.objective == "accuracy" and spec.data.tasks == "none":
        raise BadInputError(
            "The search was asked to find the best accuracy, but this run is evaluated without "
            "tasks, so that every plan has none. Search for the loss, or start a run with tasks."
        )


def widths_are_known(spec: PruningSpec) -> bool:
    """Whether ratio and layout alone decide how wide every layer stays: nobody knows what fits a
    layer whose width scores decide.
    """
    return spec.scope == "per-layer" or spec.shape == "uniform"


def check_feasible(record: RunRecord, spec: RunSpec, steps: tuple[str, ...]) -> None:
    """Refuse a ratio, a budget or widths that no plan reaches, from the headers alone.

    Raises:
        QPrunerError: It cannot work for this model; the message says what would.
    """
    card = record.load if "load" not in steps else None
    card = card or inspect_model(spec.model)
    _check_length(spec, card)
    trains = bool("recover" in steps and spec.recovery.steps)
    trains = trains or bool("search" in steps and spec.search.recover_steps)
    if trains:
        check_training(spec.recovery, spec.data)
    layout = pruned = card.layout
    if record.prune is not None and "prune" not in steps:
        pruned = record.prune.layout
    elif "prune" in steps:
        plan = select(layout, None, spec.pruning).plan
        wanted = spec.pruning.compensation == "bias"
        pruned = layout.pruned(with_biases(layout, plan) if wanted else plan)
    if trains:
        adapter_ranks(spec.recovery, pruned)
    further: tuple[ModelLayout, ...] = ()
    if "quantize" in steps or "search" in steps:
        check_joint(spec, layout)
        further = _further(record, spec, layout, steps)
        if "prune" not in steps or widths_are_known(spec.pruning):
            check_shapes(pruned, spec.search.precisions)
        if "quantize" not in steps or widths_are_known(spec.pruning):
            for level, ratio in zip(further, spec.search.ratios, strict=False):
                check_carried(level, ratio, spec.search.precisions)
    if "search" in steps:
        _check_objective(spec)
        check_budget(spec.search, layout, pruned, further)


def _further(
    record: RunRecord, spec: RunSpec, dense: ModelLayout, steps: tuple[str, ...]
) -> tuple[ModelLayout, ...]:
    """Return the layouts of a joint search's further levels: those that were decided, else what
    the ratios alone tell.
    """
    if record.quantize is not None and "quantize" not in steps:
        return tuple(level.layout for level in record.quantize.levels[1:])
    return likely_layouts(dense, spec)

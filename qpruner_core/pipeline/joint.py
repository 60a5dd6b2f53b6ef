"""Pruning and precision searched together: which prunings there are to choose from, the models
that carry them, and the words for what was chosen.

A joint search knows the run's own pruning as level 0 and every further ratio that it asks for as a
level of its own, each selected from the same unit scores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from qpruner_core.domain.joint import Level, composed, removed_share
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.record import PruningOutcome, QuantizationOutcome
from qpruner_core.domain.spec import PruningSpec, RunSpec, SearchSpec
from qpruner_core.errors import BadInputError, IncompatibleShapeError, NotReadyError
from qpruner_core.pruning.selection import select
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization.shapes import check_shapes
from qpruner_core.search.space import SearchSpace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from qpruner_core.models.loader import LoadedModel
    from qpruner_core.pipeline.cutting import Cut

_APART = "Search precisions alone after such a pruning, or prune without it."


def check_joint(spec: RunSpec, layout: ModelLayout) -> None:
    """Refuse what does not go with a joint search, before anything is computed.

    Args:
        spec: What the run asks for, or has been pruned by.
        layout: The model before pruning.

    Raises:
        BadInputError: Layers would not have the same Linears, or biases, at every level; a level
            would depend on scores that are not kept; or a further ratio is the run's own.
    """
    pruning, search = spec.pruning, spec.search
    if search.joint == "none":
        return
    if pruning.drop_layers:
        raise BadInputError(
            f"A joint search needs the same layers at every pruning ratio, but "
            f"{pruning.drop_layers} of them leave whole. {_APART}"
        )
    if pruning.iterations > 1:
        raise BadInputError(
            f"A joint search selects every pruning ratio from the scores of the dense model, but "
            f"{pruning.iterations} rounds score what is left anew. {_APART}"
        )
    if pruning.compensation != "none":
        raise BadInputError(
            f"A joint search puts layers of different pruning ratios together, but the "
            f"compensation {pruning.compensation!r} fits a layer's biases to all layers before "
            f"it. {_APART}"
        )
    has_experts = any(group.kind == "experts" for group in layout.groups)
    if has_experts and "experts" in pruning.kinds:
        raise BadInputError(
            f"A joint search needs the same Linears at every pruning ratio, but whole experts may "
            f"leave. {_APART}"
        )
    if pruning.ratio in search.ratios:
        raise BadInputError(
            f"The further ratios of the joint search name {pruning.ratio:g}, the ratio the run is "
            f"pruned by anyway. Leave it out of them."
        )


def likely_layouts(layout: ModelLayout, spec: RunSpec) -> tuple[ModelLayout, ...]:
    """Return the layouts of the further levels, as far as ratio and layout alone decide them.

    In a scope where scores decide the widths, these are widths of about the right size.

    Raises:
        InfeasibleRatioError: No selection reaches one of the ratios.
    """
    if spec.search.joint == "none":
        return ()
    wanted = (replace(spec.pruning, ratio=ratio) for ratio in spec.search.ratios)
    return tuple(select(layout, None, pruning).layout for pruning in wanted)


def decide_levels(
    decide: Callable[[PruningSpec], Cut], own: PruningOutcome, search: SearchSpec
) -> tuple[Level, ...]:
    """Return the levels of a joint search: the run's own pruning, then every further ratio.

    Args:
        decide: Returns what a pruning spec removes from the dense model, such as
            `Cutting.decide`.
        own: How the run was pruned.
        search: What is searched.

    Raises:
        BadInputError: Two ratios round to the very same widths.
        IncompatibleShapeError: A precision of the search cannot carry some width of a level.
        NotReadyError: The run was not scored by the criterion that it was pruned by.
    """
    if search.joint == "none":
        return ()
    check_shapes(own.layout, search.precisions)
    levels = [Level(ratio=own.spec.ratio, plan=own.plan, layout=own.layout)]
    for ratio in search.ratios:
        cut = decide(replace(own.spec, ratio=ratio))
        twin = next((known for known in levels if known.layout == cut.layout), None)
        if twin is not None:
            raise BadInputError(
                f"Pruning ratios of {twin.ratio:g} and {ratio:g} leave the very same widths, as "
                f"whole units and rounded widths have none between. Choose ratios further apart."
            )
        check_carried(cut.layout, ratio, search.precisions)
        levels.append(Level(ratio=ratio, plan=cut.plan, layout=cut.layout))
    return tuple(levels)


def check_carried(layout: ModelLayout, ratio: float, precisions: Sequence[str]) -> None:
    """Refuse precisions that cannot carry the widths of a level.

    Raises:
        IncompatibleShapeError: Blocks do not divide some width; the ratio and every Linear are
            named.
    """
    try:
        check_shapes(layout, precisions)
    except IncompatibleShapeError as error:
        raise IncompatibleShapeError(f"At a pruning ratio of {ratio:g}, {error}") from error


def check_levels(spec: RunSpec, outcome: QuantizationOutcome) -> None:
    """Refuse a joint search whose levels were not measured.

    Raises:
        BadInputError: The quantising step knows other ratios than the search asks for.
    """
    if spec.search.joint == "none":
        return
    known = tuple(level.ratio for level in outcome.levels)
    asked = (spec.pruning.ratio, *spec.search.ratios)
    if known != asked:
        raise BadInputError(
            f"The joint search asks for the pruning ratios {', '.join(f'{r:g}' for r in asked)}, "
            f"but sensitivities were measured for "
            f"{', '.join(f'{r:g}' for r in known) or 'none of them'}. Run the quantising step "
            f"again."
        )


def search_space(
    layout: ModelLayout,
    search: SearchSpec,
    further: Sequence[ModelLayout] = (),
    reference_bytes: int | None = None,
) -> SearchSpace:
    """Return the space of a search.

    Args:
        layout: The model as the run prunes it.
        search: What is searched.
        further: Layouts of the further levels of a joint search.
        reference_bytes: What a budget given as a fraction refers to; the layout at 16 bit if None.
    """
    return SearchSpace(
        layout,
        search.precisions,
        search.tie,
        reference_bytes,
        levels=further,
        joint=search.joint if further else "none",
        fixed=search.fixed,
    )


def level_models(dense: LoadedModel, levels: Sequence[Level]) -> Iterator[LoadedModel]:
    """Yield the model of every level, level 0 first; the dense model is used up.

    They share everything that is not in the decoder layers. At any time the dense layers are in
    memory twice at most, beside those of the levels that were asked for.

    Args:
        dense: The model before pruning; it is the last of the levels in the end.
        levels: All levels of the search.
    """
    for number, level in enumerate(levels, start=1):
        model = dense.model
        if number < len(levels):
            model = with_layers_of_its_own(model, dense.layout)
        prune_(model, dense.layout, level.plan)
        yield replace(dense, model=model)


def with_layers_of_its_own(model: PreTrainedModel, layout: ModelLayout) -> PreTrainedModel:
    """Return a copy of a model that shares all tensors but those in its decoder layers."""
    layers = model.get_submodule(layout.layer_prefix)
    own = {id(tensor) for tensor in chain(layers.parameters(), layers.buffers())}
    everything = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(t): t for t in everything if id(t) not in own})


def pruning_of(
    dense: ModelLayout, own: PruningOutcome, levels: Sequence[Level], chosen: Sequence[int]
) -> PruningPlan:
    """Return what is removed under a plan's levels; the run's own pruning where it names none.

    Raises:
        NotReadyError: The plan names levels, but the run knows none.
    """
    if not chosen:
        return own.plan
    if not levels:
        raise NotReadyError(
            "The plan gives its layers pruning levels, but this run has none. Run its quantising "
            "step with a joint search first."
        )
    return composed(dense, levels, chosen)


def levels_words(
    dense: ModelLayout, pruned: ModelLayout, levels: Sequence[Level], plan: PrecisionPlan
) -> str:
    """Return one sentence: which ratio every layer has, and what leaves in all; empty where the
    run knows no levels.
    """
    if not levels:
        return ""
    chosen = plan.levels or (0,) * dense.n_layers
    share = f"{removed_share(dense, pruned):.1%} of all parameters leave"
    if len(set(chosen)) == 1:
        ratio = levels[chosen[0]].ratio
        return f"Pruning and precision were searched together: {share}, at a ratio of {ratio:g}."
    parts = []
    for level in sorted(set(chosen), key=lambda index: levels[index].ratio):
        layers = [layer for layer, own in enumerate(chosen) if own == level]
        parts.append(f"{levels[level].ratio:g} in {_numbers(layers)}")
    return (
        f"Pruning and precision were searched together: {share}, with the layers as ratios of "
        f"{', '.join(parts[:-1])} and {parts[-1]} prune them."
    )


def _numbers(layers: list[int]) -> str:
    """Return layers as words, runs of neighbours as ranges."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    spans = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"{'layer' if len(layers) == 1 else 'layers'} {', '.join(spans)}"

"""The first pass of streaming: calibration text goes through one decoder layer at a time.

The same micro-batches in the same order, the same arithmetic and the same criteria as in memory,
so the scores are the same numbers; only the loops are exchanged, layers outside, batches inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qpruner_core.catalog import CRITERIA
from qpruner_core.domain.footprint import format_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.spec import ImportanceSpec
from qpruner_core.errors import BadInputError, NonFiniteLossError
from qpruner_core.importance import reach
from qpruner_core.importance.scoring import create, finite
from qpruner_core.models.coupled import coupled_groups
from qpruner_core.models.hidden_states import HiddenStates, hidden_states
from qpruner_core.models.host_memory import release
from qpruner_core.models.inputs import (
    InputStats,
    micro_batches,
    output_projections,
    require_finite,
    require_text,
    watching,
)
from qpruner_core.models.skeleton import Skeleton
from qpruner_core.models.trunk import LayerInputs, first_inputs, run_layers

OnLayer = Callable[[int], None]
"""Told the index of every finished layer; may raise to stop."""

_BLOCK_INFLUENCE = "block_influence"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is kept of the first pass: numbers per unit, per layer and per input."""

    unit_scores: Mapping[str, NDArray[np.float32]]
    """Group name -> importance of its units, (n_units,)."""
    layer_scores: NDArray[np.float32] | None
    """Block Influence per layer, (n_layers,); None where it was not asked for."""
    inputs: Mapping[str, InputStats] = field(default_factory=dict)
    """Linear -> moments of its inputs, for those that were to be kept."""
    warnings: tuple[str, ...] = ()
    """Sentences for the person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the first pass is to find out."""

    criterion: str
    """Catalogue name of a unit criterion that streams."""
    spec: ImportanceSpec
    """Options and seed of criteria."""
    layers_leave: bool = False
    """Whether Block Influence is needed, for whole layers."""
    keep_inputs: bool = False
    """Whether the moments of what enters every Linear are kept."""

    @property
    def needs_inputs(self) -> bool:
        """Whether the criterion looks at what enters Linears."""
        return CRITERIA.entry(self.criterion).facts["needs"] == "inputs"

    @property
    def needs_forward(self) -> bool:
        """Whether calibration text goes through the layers at all."""
        return self.needs_inputs or self.keep_inputs or self.layers_leave


def streams(criterion: str) -> bool:
    """Whether a unit criterion can score a model that does not fit, one layer at a time."""
    facts = CRITERIA.entry(criterion).facts
    return bool(facts.get("streams", facts["needs"] != "gradients"))


def check_streams(criterion: str, layout: ModelLayout, n_tokens: int) -> None:
    """Refuse a criterion that needs gradients.

    Raises:
        BadInputError: The message names the bytes it needs and what fits instead.
    """
    if streams(criterion):
        return
    largest = max(layout.layer_parameters)
    activations = 4 * n_tokens * layout.hidden_size * (layout.n_layers + 1)
    needed = 4 * (layout.parameters + largest) + activations
    fitting = [
        entry.name
        for entry in CRITERIA
        if entry.facts["scores"] == "units" and streams(entry.name)
    ]
    raise BadInputError(
        f"The criterion {criterion!r} needs gradients, which take all weights, the gradients of "
        f"one layer and the activations of a micro-batch at once, about {format_bytes(needed)} "
        f"in float32: use 'qpruner run' on a machine that holds them, or one of "
        f"{', '.join(fitting)}, which go layer by layer."
    )


@torch.no_grad()
def see_layers(
    skeleton: Skeleton, ids: torch.Tensor, wanted: Wanted, folder: Path, on_layer: OnLayer
) -> Seen:
    """Score every unit, and every layer where whole ones leave; one layer is held at a time.

    Args:
        skeleton: The model; left empty as found.
        ids: Calibration tokens, int64 (n, T).
        wanted: What is to be found out.
        folder: Where hidden states go that are too many to hold.
        on_layer: Told after every layer.

    Raises:
        NonFiniteLossError: Activations or scores are not finite.
        DataTooShortError: There is no calibration text.
    """
    if not wanted.needs_forward:
        return _score_weights(skeleton, wanted, on_layer)
    batches = list(micro_batches(require_text(ids)))
    layout = skeleton.layout
    shapes = [torch.Size((*batch.shape, layout.hidden_size)) for _, batch in batches]
    with hidden_states(shapes, skeleton.device.compute_dtype, folder) as states:
        handed = _embed(skeleton, ids, states)
        signal = CRITERIA.target(_BLOCK_INFLUENCE)() if wanted.layers_leave else None
        if signal is not None:
            signal.begin(layout.n_layers, *ids.shape)
        units: dict[str, NDArray[np.float32]] = {}
        kept: dict[str, InputStats] = {}
        n_tokens: dict[str, int] = {}
        for layer in range(layout.n_layers):
            text = _Text(batches=batches, states=states, handed=handed)
            found, stats = _see_layer(skeleton, layer, wanted, text, signal)
            units |= found
            kept |= stats if wanted.keep_inputs else {}
            n_tokens |= {
                expert: stats[linear].n_tokens
                for expert, linear in _experts(one_layer(layout, layer)).items()
            }
            release()
            on_layer(layer)
    values = None if signal is None else signal.values()
    said = reach.warnings(n_tokens, layout, ids.numel())
    return Seen(unit_scores=units, layer_scores=values, inputs=kept, warnings=said)


def one_layer(layout: ModelLayout, layer: int) -> ModelLayout:
    """Return a layout that names the groups and Linears of one layer alone."""
    return replace(
        layout,
        groups=tuple(group for group in layout.groups if group.layer == layer),
        linears=tuple(linear for linear in layout.linears if linear.layer == layer),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """The calibration text on its way through the layers."""

    batches: list[tuple[int, torch.Tensor]]
    states: HiddenStates
    handed: Mapping[torch.Size, LayerInputs]
    """Shape of a micro-batch (B, T) -> what layers are handed beside hidden states."""


def _embed(
    skeleton: Skeleton, ids: torch.Tensor, states: HiddenStates
) -> dict[torch.Size, LayerInputs]:
    """Fill the hidden states before the first layer; return what layers are handed beside them,
    which masks and positions make the same for all micro-batches of one shape.
    """
    handed: dict[torch.Size, LayerInputs] = {}
    with skeleton.embedding(ids) as places:
        for index, (_, batch) in enumerate(micro_batches(places)):
            inputs = first_inputs(skeleton.model, skeleton.layout, batch)
            states.write(index, inputs.hidden)
            handed.setdefault(batch.shape, inputs.at(torch.empty(0)))
    release()
    return handed


def _see_layer(
    skeleton: Skeleton, layer: int, wanted: Wanted, text: _Text, signal: Any
) -> tuple[dict[str, NDArray[np.float32]], dict[str, InputStats]]:
    """Run one layer over all micro-batches and score it."""
    layout = one_layer(skeleton.layout, layer)
    with skeleton.layer(layer):
        watched = _watched(layout, wanted)
        modules = {name: skeleton.model.get_submodule(name) for name in watched}
        with watching(modules) as stats:
            for index, (first, batch) in enumerate(text.batches):
                before = text.states.read(index).to(skeleton.device.torch)
                inputs = text.handed[batch.shape].at(before)
                after = run_layers(skeleton.model, skeleton.layout, inputs, layer, layer + 1)
                if not torch.isfinite(after).all():
                    raise NonFiniteLossError(
                        f"The output of layer {layer} on calibration text is not finite. The "
                        "weights may be damaged or overflow in this precision: run it on the CPU "
                        "in float32, or copy the checkpoint again."
                    )
                if signal is not None:
                    signal.see_layer(layer, first, before, after)
                text.states.write(index, after)
        require_finite(stats)
        return _scores(skeleton, layout, wanted, stats), stats


def _watched(layout: ModelLayout, wanted: Wanted) -> Iterable[str]:
    if wanted.keep_inputs:
        return [linear.name for linear in layout.linears]
    ends = output_projections(layout) if wanted.needs_inputs else _experts(layout)
    return ends.values()


def _experts(layout: ModelLayout) -> dict[str, str]:
    """Return expert -> its output projection."""
    names = {group.name for group in layout.groups if group.kind == "expert_channels"}
    return {name: end for name, end in output_projections(layout).items() if name in names}


def _score_weights(skeleton: Skeleton, wanted: Wanted, on_layer: OnLayer) -> Seen:
    """Score by weights alone."""
    units: dict[str, NDArray[np.float32]] = {}
    for layer in range(skeleton.layout.n_layers):
        with skeleton.layer(layer):
            units |= _scores(skeleton, one_layer(skeleton.layout, layer), wanted, {})
        release()
        on_layer(layer)
    return Seen(unit_scores=units, layer_scores=None)


def _scores(
    skeleton: Skeleton, layout: ModelLayout, wanted: Wanted, stats: Mapping[str, InputStats]
) -> dict[str, NDArray[np.float32]]:
    """Return the scores of the groups of one layer, whose weights are there."""
    criterion = create(wanted.criterion, wanted.spec)
    criterion.begin(layout.groups)
    found = {}
    for group in coupled_groups(skeleton.model, layout):
        if wanted.needs_inputs:
            criterion.see_inputs(group.layout, stats)
        values = criterion.score(group).float().cpu().numpy()
        found[group.name] = finite(wanted.criterion, repr(group.name), values)
    return found

"""All chosen criteria in as few passes as they need: at most one forward, one with gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qpruner_core.catalog import CRITERIA, check_layer_signal
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.progress import OnProgress, Progress, silent
from qpruner_core.domain.record import Agreement, ImportanceCell
from qpruner_core.domain.spec import ImportanceSpec
from qpruner_core.errors import NonFiniteLossError
from qpruner_core.importance.agreement import agreement
from qpruner_core.importance.freeing import Freeing
from qpruner_core.importance.passes import (
    SEQUENCES_PER_BACKWARD,
    forward_pass,
    gradient_pass,
    n_batches,
)
from qpruner_core.importance.reach import counting, warnings
from qpruner_core.models.coupled import CoupledGroup, coupled_groups
from qpruner_core.models.inputs import output_projections, watching
from qpruner_core.registry import OptionValue

if TYPE_CHECKING:
    from qpruner_core.importance import LayerSignal, UnitCriterion

Values = NDArray[np.float32]

MODULES = {
    "kv_heads": "attention",
    "mlp_channels": "mlp",
    "expert_channels": "mlp",
    "experts": "experts",
}
"""Kind of unit -> module of the importance table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What every unit and layer is worth under the chosen criteria."""

    unit_scores: Mapping[str, Mapping[str, Values]]
    """Criterion -> group name -> importance of its units, float32 (n_units,), finite, >= 0."""
    layer_scores: Mapping[str, Values]
    """Layer signal -> value per layer, float32 (n_layers,), finite, >= 0."""
    n_tokens: int
    """Calibration tokens seen."""
    kinds: Mapping[str, tuple[int, str]]
    """Group name -> decoder layer and kind of unit."""
    agreement: tuple[Agreement, ...] = ()
    """Rank agreement of every two unit criteria, per kind of unit."""
    warnings: tuple[str, ...] = ()
    """Sentences for the person."""


def score(
    model: nn.Module,
    layout: ModelLayout,
    ids: torch.Tensor,
    spec: ImportanceSpec,
    on_progress: OnProgress = silent,
) -> Scores:
    """Score every unit and layer by all criteria of a spec.

    One pass with gradients serves all criteria of gradients, one forward pass all criteria of
    inputs and all layer signals; criteria of weights need none.

    Args:
        model: The model; left as found.
        layout: Its layout.
        ids: Calibration tokens, int64 (n, T), on any device.
        spec: Criteria, their options and the seed.
        on_progress: Told after every micro-batch and every criterion.

    Raises:
        NonFiniteLossError: A loss, an activation or a score is not finite.
        DataTooShortError: There is no calibration text.
        UnknownNameError: A criterion has no entry.
    """
    ids = ids.to(next(model.parameters()).device)
    wanted = _Wanted.of(spec)
    ticker = _Ticker(on_progress, wanted.n_pieces(ids))
    for criterion in wanted.criteria.values():
        criterion.begin(layout.groups)
    with counting(model, layout) as n_rows:
        _score_by_text(wanted, model, layout, ids, ticker)
    units: dict[str, Mapping[str, Values]] = {}
    for name, criterion in wanted.criteria.items():
        units[name] = _score_units(name, criterion, model, layout)
        ticker.tick(f"Scored by {name}")
    layers: dict[str, Values] = {}
    for name, signal in wanted.signals.items():
        layers[name] = finite(name, "the layers", signal.values())
        ticker.tick(f"Scored by {name}")
    kinds = {group.name: (group.layer, group.kind) for group in layout.groups}
    return Scores(
        unit_scores=units,
        layer_scores=layers,
        n_tokens=ids.numel(),
        kinds=kinds,
        agreement=agreement(units, {name: kind for name, (_, kind) in kinds.items()}),
        warnings=warnings(n_rows, layout, ids.numel()),
    )


def layer_signal(
    name: str,
    model: nn.Module,
    layout: ModelLayout,
    ids: torch.Tensor,
    options: Mapping[str, OptionValue] | None = None,
    seed: int = 0,
) -> Values:
    """Return one layer signal of a model, pruned or not, float32 (n_layers,).

    Args:
        name: Catalogue name of a criterion that scores layers.
        model: The model; left as found.
        layout: Its layout as it is now.
        ids: Calibration tokens, int64 (n, T), on any device.
        options: Options of the criterion; defaults for those not given.
        seed: Seed of everything random in it.

    Raises:
        NonFiniteLossError: An activation is not finite.
        BadInputError: The criterion scores units, not layers.
        UnknownNameError: It has no entry.
    """
    check_layer_signal(name)
    spec = ImportanceSpec(criteria=(name,), options={name: options or {}}, seed=seed)
    return score(model, layout, ids, spec).layer_scores[name]


def table(scores: Scores) -> tuple[ImportanceCell, ...]:
    """Return the importance table: means over a module's units, and layer signals as they are.

    The experts of a layer are one MLP: the mean is over the channels of all.
    """
    cells = []
    for criterion, groups in scores.unit_scores.items():
        modules: dict[tuple[int, str], list[Values]] = {}
        for name, values in groups.items():
            layer, kind = scores.kinds[name]
            modules.setdefault((layer, MODULES[kind]), []).append(values)
        cells += [
            ImportanceCell(
                layer=layer,
                module=module,
                criterion=criterion,
                value=float(np.concatenate(values).mean(dtype=np.float64)),
            )
            for (layer, module), values in modules.items()
        ]
    for criterion, values in scores.layer_scores.items():
        cells += [
            ImportanceCell(layer=layer, module="layer", criterion=criterion, value=float(value))
            for layer, value in enumerate(values)
        ]
    return tuple(cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The criteria of a spec, made and sorted by what they score and need."""

    criteria: Mapping[str, UnitCriterion]
    signals: Mapping[str, LayerSignal]
    needs: Mapping[str, object]
    """Criterion -> its fact ``needs``."""

    @classmethod
    def of(cls, spec: ImportanceSpec) -> _Wanted:
        """Make every criterion of a spec, in its order."""
        made = {name: create(name, spec) for name in spec.criteria}
        facts = {name: CRITERIA.entry(name).facts for name in made}
        return cls(
            criteria={n: made[n] for n in made if facts[n]["scores"] == "units"},
            signals={n: made[n] for n in made if facts[n]["scores"] == "layers"},
            needs={n: facts[n]["needs"] for n in made},
        )

    def that_need(self, what: str) -> list[UnitCriterion]:
        """Return the unit criteria that need gradients, or inputs."""
        return [made for name, made in self.criteria.items() if self.needs[name] == what]

    @property
    def looks_forward(self) -> bool:
        """Whether there is a forward pass."""
        return bool(self.signals or self.that_need("inputs"))

    def n_pieces(self, ids: torch.Tensor) -> int:
        """Return how many pieces of work are reported for those calibration tokens."""
        pieces = len(self.criteria) + len(self.signals)
        if self.that_need("gradients"):
            pieces += n_batches(ids, SEQUENCES_PER_BACKWARD)
        return pieces + (n_batches(ids) if self.looks_forward else 0)


class _Ticker:
    """Counts finished pieces and reports them."""

    def __init__(self, on_progress: OnProgress, total: int) -> None:
        self._on_progress = on_progress
        self._total = total
        self._done = 0

    def tick(self, message: str) -> None:
        self._done += 1
        self._on_progress(
            Progress(step="score", done=self._done, total=self._total, message=message)
        )

    def batch(self, message: str) -> Callable[[], None]:
        return partial(self.tick, message)


def create(name: str, spec: ImportanceSpec) -> Any:
    """Return the criterion or signal of that name with the options and the seed of a spec.

    Raises:
        UnknownNameError: It has no entry.
        BadInputError: An option is unknown or does not fit.
    """
    options = CRITERIA.options(name, spec.options.get(name, {}))
    seed = {"seed": spec.seed} if CRITERIA.entry(name).facts.get("takes_seed") else {}
    return CRITERIA.target(name)(**options, **seed)


def _score_by_text(
    wanted: _Wanted, model: nn.Module, layout: ModelLayout, ids: torch.Tensor, ticker: _Ticker
) -> None:
    """Make the passes that the criteria need and show them what they see."""
    learning = wanted.that_need("gradients")
    if learning:
        freeing = Freeing(coupled_groups(model, layout), partial(_show_gradients, learning))
        gradient_pass(model, layout, ids, freeing, ticker.batch("Gradients"))
    if wanted.looks_forward:
        watched = output_projections(layout) if wanted.that_need("inputs") else {}
        modules = {name: model.get_submodule(name) for name in watched.values()}
        with watching(modules) as stats:
            signals = list(wanted.signals.values())
            forward_pass(model, layout, ids, signals, ticker.batch("Activations"))
        for criterion in wanted.that_need("inputs"):
            for group in layout.groups:
                criterion.see_inputs(group, stats)


def _show_gradients(criteria: Sequence[UnitCriterion], group: CoupledGroup) -> None:
    for criterion in criteria:
        criterion.see_gradients(group)


def _score_units(
    name: str, criterion: UnitCriterion, model: nn.Module, layout: ModelLayout
) -> dict[str, Values]:
    return {
        group.name: finite(name, repr(group.name), criterion.score(group).float().cpu().numpy())
        for group in coupled_groups(model, layout)
    }


def finite(name: str, where: str, values: Values) -> Values:
    """Return the values that a criterion gave for a place, which are all finite.

    Raises:
        NonFiniteLossError: Some are not.
    """
    if not np.isfinite(values).all():
        raise NonFiniteLossError(
            f"While scoring, the criterion {name!r} gave values for {where} that are not finite "
            f"numbers. The weights or gradients overflow: run the model in float32, or choose "
            f"another criterion."
        )
    return values

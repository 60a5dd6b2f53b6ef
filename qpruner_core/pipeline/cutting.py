"""From scores to a pruned model: what is to leave, in rounds where asked for, and the biases that
stand in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from qpruner_core.domain.layout import ModelLayout, Renaming
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PruningPlan
from qpruner_core.domain.record import ImportanceOutcome, PruningOutcome, RunRecord
from qpruner_core.domain.spec import ImportanceSpec, PruningSpec
from qpruner_core.errors import NotReadyError
from qpruner_core.importance import layer_signal, score
from qpruner_core.pipeline.materials import Materials, bytes_16_bit
from qpruner_core.pipeline.samples import continue_text, prompts_from
from qpruner_core.pruning.compensation import (
    bias_remarks,
    bias_values,
    settled_statistics,
    with_biases,
)
from qpruner_core.pruning.request import make_request
from qpruner_core.pruning.selection import Selection, select
from qpruner_core.store.records import RunStore

DEPTH = "block_influence"
"""The layer signal by which whole layers leave."""

UnitScores = Mapping[str, np.ndarray]
Tell = Callable[[int, int, str], None]
"""Called with pieces done, all pieces, and what comes next."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cut:
    """A pruning decided in full: with it and the dense model, the pruned one can be made."""

    plan: PruningPlan
    """Units and layers that stay, and the Linears that get a bias."""
    layout: ModelLayout
    """Layout of the pruned model."""
    biases: Mapping[str, torch.Tensor]
    """Linear of the plan -> what its bias gains, float32 (out_features,)."""
    warnings: tuple[str, ...]


def round_spec(spec: PruningSpec, first: float, number: int) -> PruningSpec:
    """Return what one round of several asks for: its share of all that units are to lose.

    Args:
        spec: What all rounds together ask for.
        first: Share of the parameters of the decoder layers that leaves with whole layers, all of
            them in the first round.
        number: Number of the round, from 1 to ``spec.iterations``; the last asks for everything.
    """
    done = number / spec.iterations
    by_hand = {layer: ratio * done for layer, ratio in spec.layer_ratios.items()}
    ratio = first + (spec.ratio - first) * done if spec.ratio > first else spec.ratio
    if number == spec.iterations:
        return spec
    return replace(spec, ratio=ratio, layer_ratios=by_hand)


def in_dense_numbering(
    layout: ModelLayout, plan: PruningPlan, scores: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the scores of a pruned model under the names and numbers of the dense one.

    Args:
        layout: The dense model.
        plan: What the scored model had lost.
        scores: Group name in the pruned model -> scores of the units it has.

    Returns:
        Group name -> float32 (n_units,); 0 for what has left.
    """
    new_name = Renaming(layout, plan)
    found = {}
    for group in layout.groups:
        values = np.zeros(group.n_units, dtype=np.float32)
        name = new_name(group.name)
        if name is not None:
            values[list(plan.kept.get(group.name, range(group.n_units)))] = scores[name]
        found[group.name] = values
    return found


class Cutting:
    """Decides what a pruning spec removes from the model of a run."""

    def __init__(
        self, store: RunStore, record: Callable[[], RunRecord], materials: Materials
    ) -> None:
        self._store = store
        self._record = record
        self._materials = materials
        self._known_influence: list[float] = []
        self._influence_key: object = None

    def prepare(self, spec: PruningSpec) -> None:
        """Have at hand what prunings by all criteria share: the dense model, the text, and the
        Block Influence of the layers where some are to leave.

        Raises:
            NotReadyError: The run was not scored.
        """
        layout = self._materials.dense().layout
        self._materials.corpus()
        if spec.drop_layers:
            self._influence(layout)

    def prune(self, tell: Tell) -> PruningOutcome:
        """Prune by the record's spec and measure before and after; the pruned model stays in
        memory.
        """
        spec = self._record().spec.pruning
        dense = self._materials.dense()
        layout = dense.layout
        self._scores(spec.criterion)
        prompts = prompts_from(self._materials.corpus().heldout, dense.tokenizer)
        before, said_before = self._look(layout, prompts)
        n_pieces = spec.iterations + 2

        def on_round(number: int, words: str) -> None:
            tell(number, n_pieces, words)

        cut = self.decide(spec, on_round)
        tell(spec.iterations, n_pieces, "cutting")
        artifact = self._keep(cut)
        self._materials.cut(cut.plan, cut.biases, artifact)
        tell(spec.iterations + 1, n_pieces, "measuring what is left")
        after, said_after = self._look(cut.layout, prompts)
        return PruningOutcome(
            spec=spec,
            plan=cut.plan,
            layout=cut.layout,
            parameters_before=layout.parameters,
            parameters_after=cut.layout.parameters,
            before=before,
            after=after,
            samples=tuple(zip(prompts, said_before, said_after, strict=True)),
            warnings=cut.warnings,
            biases=artifact,
        )

    def decide(
        self, spec: PruningSpec, on_round: Callable[[int, str], None] = lambda number, words: None
    ) -> Cut:
        """Return what a spec removes from the dense model; that is in memory afterwards.

        With several rounds, the model as pruned so far is scored anew by the criterion before
        each but the first. Whole layers leave in the first. The outcome depends on the record and
        the spec alone.

        Args:
            spec: What is asked for.
            on_round: Told how many rounds are done, and what comes next.

        Raises:
            NotReadyError: The run was not scored by the criterion.
            InfeasibleRatioError: No selection reaches the ratio.
        """
        layout = self._materials.dense().layout
        influence = self._influence(layout) if spec.drop_layers else None
        first = _dropped_share(layout, spec, influence)
        scores, chosen = self._scores(spec.criterion), None
        said: list[str] = []
        for number in range(1, spec.iterations + 1):
            if chosen is not None:
                on_round(number - 1, f"round {number} of {spec.iterations}: scoring what is left")
                scores, warnings = self._scored_again(layout, chosen.plan, spec.criterion)
                said += [f"Round {number}, by the names of what was left: {w}" for w in warnings]
            chosen = select(
                layout,
                scores,
                round_spec(spec, first, number),
                layer_scores=influence,
                removed=chosen.plan if chosen is not None else None,
            )
        if chosen is None:
            raise RuntimeError("a pruning spec has at least one round")
        cut = self._compensated(layout, spec, chosen)
        return replace(cut, warnings=(*said, *cut.warnings))

    def _scores(self, criterion: str) -> UnitScores:
        outcome = self._outcome()
        arrays = self._store.read_arrays(self._record().run_id, outcome.unit_scores)
        mark = f"{criterion}/"
        found = {key[len(mark) :]: value for key, value in arrays.items() if key.startswith(mark)}
        if not found:
            raise NotReadyError(
                f"This run was not scored by {criterion!r}, only by "
                f"{', '.join(outcome.spec.criteria)}. Score it again with {criterion!r} among the "
                f"criteria, or prune by one of those."
            )
        return found

    def _outcome(self) -> ImportanceOutcome:
        outcome = self._record().score
        if outcome is None:
            raise NotReadyError("This run has no importance scores yet. Score it first.")
        return outcome

    def _influence(self, layout: ModelLayout) -> list[float]:
        """Return the Block Influence of every layer: as it was scored, else measured, once for a
        model and a text.
        """
        outcome = self._outcome()
        known = outcome.layer_values(DEPTH)
        if known.keys() == set(range(layout.n_layers)):
            return [known[layer] for layer in range(layout.n_layers)]
        spec = self._record().spec
        key = (spec.model, spec.data, outcome.spec.seed)
        if self._influence_key != key:
            dense, ids = self._materials.dense(), self._materials.corpus().calibration
            values = layer_signal(DEPTH, dense.model, layout, ids, seed=outcome.spec.seed)
            self._known_influence = [float(value) for value in values]
            self._influence_key = key
        return self._known_influence

    def _scored_again(
        self, layout: ModelLayout, plan: PruningPlan, criterion: str
    ) -> tuple[UnitScores, tuple[str, ...]]:
        """Return the scores of what a plan leaves, in the numbering of the dense model, and what
        scoring says to the person.
        """
        asked = self._outcome().spec
        self._materials.cut(plan)
        left = self._materials.current()
        spec = ImportanceSpec(criteria=(criterion,), options=asked.options, seed=asked.seed)
        ids = self._materials.corpus().calibration
        found = score(left.model, layout.pruned(plan), ids, spec)
        scores = in_dense_numbering(layout, plan, found.unit_scores[criterion])
        return scores, found.warnings

    def _compensated(self, layout: ModelLayout, spec: PruningSpec, chosen: Selection) -> Cut:
        dense = self._materials.dense()
        plan, biases = chosen.plan, dict[str, torch.Tensor]()
        if spec.compensation == "bias":
            plan = with_biases(layout, plan)
            ids = self._materials.corpus().calibration
            stats = settled_statistics(dense.model, layout, plan, ids) if plan.biases else {}
            biases = bias_values(dense.model, layout, plan, stats)
        return Cut(
            plan=plan,
            layout=layout.pruned(plan),
            biases=biases,
            warnings=(*chosen.warnings, *bias_remarks(layout, plan)),
        )

    def _keep(self, cut: Cut) -> str:
        """Write the values of a cut's biases, so that the record says all; return their name."""
        if not cut.plan.biases:
            return ""
        arrays = {name: values.numpy() for name, values in cut.biases.items()}
        return self._store.write_arrays(self._record().run_id, "biases", arrays)

    def _look(self, layout: ModelLayout, prompts: list[str]) -> tuple[Metrics, list[str]]:
        """Measure the model in memory at 16 bit and let it continue the prompts."""
        model = self._materials.current()
        metrics = self._materials.suite().evaluate(
            model.model, weight_bytes=bytes_16_bit(layout), device_name=model.device.name
        )
        return metrics, [continue_text(model.model, model.tokenizer, p) for p in prompts]


def _dropped_share(layout: ModelLayout, spec: PruningSpec, influence: list[float] | None) -> float:
    """Return the share of the parameters of the decoder layers that leaves with whole layers."""
    if not spec.drop_layers:
        return 0.0
    # Asked of the whole spec, as layers with a ratio by hand never leave whole.
    gone = make_request(layout, None, spec, influence, None).dropped
    sizes = layout.layer_parameters
    return sum(sizes[layer] for layer in gone) / sum(sizes)

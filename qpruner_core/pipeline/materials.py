"""Models in memory: built from the record when a step needs them, kept while they still fit it.

A run's record says everything that is needed to rebuild its models, so nothing here is ever saved,
and a worker that was killed builds the same models again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from qpruner_core.catalog import precision_formats
from qpruner_core.data import Corpus, TrainingSet, load_corpus, load_training
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.joint import Level
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.record import PruningOutcome, RunRecord
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.spec import ModelSpec
from qpruner_core.errors import NotReadyError
from qpruner_core.evaluation import Suite, build_suite
from qpruner_core.inspection.sources import training_source
from qpruner_core.models.device import Device
from qpruner_core.models.loader import LoadedModel, load
from qpruner_core.pipeline.joint import level_models, pruning_of
from qpruner_core.pruning.compensation import round_biases_
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.level_bank import LevelBank

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DENSE = "dense"
"""State of a model whose units are all there."""


ReadArrays = Callable[[str], Mapping[str, np.ndarray]]
"""Returns the arrays of an artifact of the run."""


def bytes_16_bit(layout: ModelLayout) -> int:
    """Return the bytes of a model at 16 bit."""
    return plan_bytes(layout, PrecisionPlan.uniform(layout, "bf16"), precision_formats())


class Materials:
    """The dense or the pruned model of one run with its data; one model at a time, but for the
    bank of a joint search, which holds the decoder layers of every level.
    """

    def __init__(
        self, record: Callable[[], RunRecord], device: Device, read_arrays: ReadArrays
    ) -> None:
        self._record = record
        self._device = device
        self._read_arrays = read_arrays
        self._model: LoadedModel | None = None
        self._model_key: object = None
        self._bank: Bank | LevelBank | None = None
        self._bank_key: object = None
        self._corpus: Corpus | None = None
        self._suites: dict[str, Suite] = {}
        self._data_key: object = None
        self._training: TrainingSet | None = None
        self._training_key: object = None
        self._files: object = ()
        self.loading_seconds = 0.0
        """Wall time of all loads of the model so far."""

    @property
    def device(self) -> Device:
        """Where the models lie."""
        return self._device

    def dense(self) -> LoadedModel:
        """Return the model as it was loaded."""
        return self._keep(DENSE, self._load)

    def elsewhere(self, device: Device) -> Materials:
        """Return the materials of the run as its record is now, on another device."""
        record = self._record()
        return Materials(lambda: record, device, self._read_arrays)

    def cut(
        self,
        plan: PruningPlan,
        biases: Mapping[str, torch.Tensor] | None = None,
        artifact: str = "",
    ) -> None:
        """Turn the dense model into the pruned one, in place.

        Args:
            plan: What stays.
            biases: Values of the plan's biases.
            artifact: Where they are stored, as the record will say; empty for nowhere.
        """
        self._keep((plan, artifact), lambda: self._carry_out(plan, biases or {}))

    def pruned(self, levels: Sequence[int] = ()) -> LoadedModel:
        """Return the pruned model at 16 bit.

        Args:
            levels: Of a plan of a joint search, the level of every layer (`PrecisionPlan.levels`);
                empty: as the run was pruned.

        Raises:
            NotReadyError: The run has not been pruned, or knows no such levels.
        """
        outcome = self._outcome()
        if self._bank is not None:
            self._bank.restore()
        if not levels:
            return self._keep(
                (outcome.plan, outcome.biases),
                lambda: self._carry_out(outcome.plan, self._stored_biases(outcome)),
            )
        plan = self.pruning(levels)
        return self._keep((plan, ""), lambda: self._carry_out(plan, {}))

    def pruning(self, levels: Sequence[int] = ()) -> PruningPlan:
        """Return what is removed: by the run's own pruning, or that of a joint plan's levels."""
        outcome = self._outcome()
        if not levels:
            return outcome.plan
        return pruning_of(self._dense_layout(), outcome, self._levels(), levels)

    def current(self) -> LoadedModel:
        """Return the model in memory as it is, dense or pruned; the dense one if there is none."""
        return self._model if self._model is not None else self.dense()

    def bank(
        self,
        precisions: tuple[str, ...],
        levels: Sequence[int] = (),
        packed: bool | None = None,
    ) -> Bank:
        """Return the bank of one pruned model: every Linear quantised once per precision.

        Args:
            precisions: Catalogue names.
            levels: As for `pruned`.
            packed: As for `Bank`.
        """
        model = self.pruned(levels)
        is_packed = self._device.kind == "cuda" if packed is None else packed
        key = (self._model_key, tuple(sorted(precisions)), is_packed)
        if not isinstance(self._bank, Bank) or self._bank_key != key:
            self._bank = None
            layout = self.layout(levels)
            self._bank = Bank(model.model, layout, precisions, self._device, packed=packed)
            self._bank_key = key
        return self._bank

    def search_bank(
        self, precisions: tuple[str, ...], levels: Sequence[Level], packed: bool | None = None
    ) -> Bank | LevelBank:
        """Return the bank that measures the plans of a search.

        That of a joint search holds the decoder layers of every level, with their candidates, in
        the place of those of one model; `pruned` finds level 0 in it.

        Args:
            precisions: Catalogue names.
            levels: All levels of a joint search; empty for any other.
            packed: As for `Bank`.
        """
        if not levels:
            return self.bank(precisions, packed=packed)
        is_packed = self._device.kind == "cuda" if packed is None else packed
        key = (self._record().spec.model, tuple(levels), tuple(sorted(precisions)), is_packed)
        if not isinstance(self._bank, LevelBank) or self._bank_key != key:
            dense = self.dense()
            # From here on, what is in memory is neither the dense model nor a pruned one.
            self._forget()
            models = level_models(dense, levels)
            layouts = [level.layout for level in levels]
            bank = LevelBank(
                (m.model for m in models), layouts, precisions, self._device, packed=packed
            )
            outcome = self._outcome()
            self._model = replace(dense, model=cast("PreTrainedModel", bank.model))
            self._model_key = (self._record().spec.model, (outcome.plan, outcome.biases))
            self._bank, self._bank_key = bank, key
        return self._bank

    def take_pruned(self, levels: Sequence[int] = ()) -> LoadedModel:
        """Hand a pruned model over for good, as `pruned` gives it: the next step builds its
        own.
        """
        model = self.pruned(levels)
        self._forget()
        return model

    def layout(self, levels: Sequence[int] = ()) -> ModelLayout:
        """Return the layout of a pruned model, as `pruned` gives it."""
        own = self._outcome().layout
        return self._dense_layout().pruned(self.pruning(levels)) if levels else own

    def corpus(self) -> Corpus:
        """Return texts and tasks as token ids, with as many items as the run evaluates."""
        spec = self._record().spec
        key = (spec.model, spec.data)
        if self._corpus is None or key != self._data_key:
            self._corpus = load_corpus(spec.data, self.current().tokenizer)
            self._suites, self._data_key = {}, key
        return self._corpus

    def training(self, spec: RecoverySpec) -> TrainingSet:
        """Return what recovery reads, tokenised once for all that is trained alike.

        Raises:
            QPrunerError: As `data.load_training`.
        """
        run = self._record().spec
        asked = (spec.training, spec.sequence_length, spec.packing, spec.train_on_prompt)
        read = _stamp(training_source(spec, run.data))
        key = (run.model, run.data, spec.seed, read, *asked)
        if self._training is None or self._training_key != key:
            self._training = load_training(spec, run.data, self.current().tokenizer)
            self._training_key = key
        return self._training

    def suite(self) -> Suite:
        """Return what every trial is evaluated on, tokenised once."""
        corpus = self.corpus()
        if "trial" not in self._suites:
            self._suites["trial"] = self._build(corpus)
        return self._suites["trial"]

    def full_suite(self) -> Suite:
        """Return the suite with every item of every task."""
        return self.suite_of(0)

    def suite_of(self, items_per_task: int) -> Suite:
        """Return the suite with so many items of every task; 0 for all of them."""
        self.corpus()
        name = f"{items_per_task} items"
        if name not in self._suites:
            data = replace(self._record().spec.data, items_per_task=items_per_task)
            tokenizer = self.current().tokenizer
            self._suites[name] = self._build(load_corpus(data, tokenizer))
        return self._suites[name]

    def _build(self, corpus: Corpus) -> Suite:
        model = self.current()
        return build_suite(model.tokenizer, corpus, max_length=model.card.max_positions)

    def let_go(self) -> None:
        """Hold no model and no bank: what comes next needs the memory."""
        self._forget()

    def renew(self) -> None:
        """Let go of a model whose files were edited since they were read."""
        if self._model is not None and self._files != _weight_files(self._record().spec.model):
            self._forget()

    def _forget(self) -> None:
        """Let go of the model and its bank, so that their memory is free before the next load."""
        self._model = self._bank = None
        self._model_key = self._bank_key = None

    def _outcome(self) -> PruningOutcome:
        outcome = self._record().prune
        if outcome is None:
            raise NotReadyError(
                "This run has no pruned model yet. Run its pruning step first; a ratio of 0 keeps "
                "all."
            )
        return outcome

    def _levels(self) -> tuple[Level, ...]:
        found = self._record().quantize
        return found.levels if found is not None else ()

    def _dense_layout(self) -> ModelLayout:
        card = self._record().load
        if card is None:
            raise NotReadyError("This run has no model yet. Run its loading step first.")
        return card.layout

    def _load(self) -> LoadedModel:
        self._forget()
        record = self._record()
        spec = record.spec.model
        if record.load is not None and record.load.revision is not None:
            # A branch may have moved since; the run stays with the commit it was begun on.
            spec = replace(spec, revision=record.load.revision)
        started, self._files = perf_counter(), _weight_files(spec)
        found = load(spec, self._device)
        self.loading_seconds += perf_counter() - started
        return found

    def _stored_biases(self, outcome: PruningOutcome) -> dict[str, torch.Tensor]:
        if not outcome.biases:
            return {}
        arrays = self._read_arrays(outcome.biases)
        return {name: torch.from_numpy(values) for name, values in arrays.items()}

    def _carry_out(self, plan: PruningPlan, biases: Mapping[str, torch.Tensor]) -> LoadedModel:
        model = self.dense()
        # Surgery works in place: until it has ended, what is in memory is neither the dense model
        # nor the pruned one, and nobody may find it.
        self._forget()
        prune_(model.model, model.layout, plan, biases)
        round_biases_(model.model, model.layout, plan, model.card.dtype)
        return model

    def _keep(self, state: object, build: Callable[[], LoadedModel]) -> LoadedModel:
        key = (self._record().spec.model, state)
        if self._model is None or self._model_key != key:
            self._model, self._model_key = build(), key
        return self._model


def _stamp(source: str) -> tuple[int, int] | None:
    """Return size and time of change of a person's own text; None of the others."""
    path = Path(source).expanduser()
    if not path.is_file():
        return None
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _weight_files(spec: ModelSpec) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change of a folder's weights; none of the demo and of the hub,
    whose files never change.
    """
    stats = ((path.name, path.stat()) for path in Path(spec.source).glob("*.safetensors"))
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))

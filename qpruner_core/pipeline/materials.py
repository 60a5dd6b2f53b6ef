"""Models in memory: built from the record when a step needs them, kept while they still fit it.

A run's record says everything that is needed to rebuild its models, so nothing here is ever saved,
and a worker that was killed builds the same models again.
"""

from __future__ import annotations

from collections.abc import Callable

from qpruner_core.data import Corpus, load_corpus
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.record import RunRecord
from qpruner_core.errors import NotReadyError
from qpruner_core.evaluation import Suite, build_suite
from qpruner_core.models.device import Device
from qpruner_core.models.loader import LoadedModel, load
from qpruner_core.pruning.surgery import prune_
from qpruner_core.quantization.bank import Bank


class Materials:
    """The dense or the pruned model of one run with its data, at most one model at a time."""

    def __init__(self, record: Callable[[], RunRecord], device: Device) -> None:
        self._record = record
        self._device = device
        self._model: LoadedModel | None = None
        self._model_key: object = None
        self._bank: Bank | None = None
        self._bank_key: object = None
        self._corpus: Corpus | None = None
        self._suites: dict[bool, Suite] = {}
        self._data_key: object = None

    @property
    def device(self) -> Device:
        """Where the models lie."""
        return self._device

    def dense(self) -> LoadedModel:
        """Return the model as it was loaded."""
        return self._keep("dense", lambda: load(self._record().spec.model, self._device))

    def pruned(self) -> LoadedModel:
        """Return the model with the record's pruning plan carried out, its weights as pruned.

        Raises:
            NotReadyError: The run has not been pruned.
        """
        outcome = self._record().prune
        if outcome is None:
            raise NotReadyError(
                "This run has no pruned model yet. Run its pruning step first; a ratio of 0 keeps all."
            )
        if self._bank is not None:
            self._bank.restore()
        return self._keep(outcome.plan, self._carry_out)

    def prune_in_place(self) -> None:
        """Turn the dense model in memory into the pruned one by the record's plan."""
        outcome = self._record().prune
        if outcome is None:
            raise NotReadyError("This run has no pruning plan yet. Run its pruning step first.")
        self._keep(outcome.plan, self._carry_out)

    def bank(self, precisions: tuple[str, ...]) -> Bank:
        """Return the bank of the pruned model, every Linear quantised once per precision."""
        model = self.pruned()
        key = (self._model_key, precisions)
        if self._bank is None or self._bank_key != key:
            self._bank = None
            self._bank = Bank(model.model, self.layout(), precisions, self._device)
            self._bank_key = key
        return self._bank

    def take_pruned(self) -> LoadedModel:
        """Hand over the pruned model for good: the caller may change it, the next step builds its
        own.
        """
        model = self.pruned()
        self._bank = self._model = self._bank_key = self._model_key = None
        return model

    def layout(self) -> ModelLayout:
        """Return the layout of the pruned model."""
        outcome = self._record().prune
        if outcome is None:
            raise NotReadyError("This run has no pruned model yet. Run its pruning step first.")
        return outcome.layout

    def corpus(self) -> Corpus:
        """Return texts and tasks as token ids."""
        self._refresh_data()
        if self._corpus is None:
            tokenizer = (self._model or self.dense()).tokenizer
            self._corpus = load_corpus(self._record().spec.data, tokenizer)
        return self._corpus

    def suite(self) -> Suite:
        """Return the evaluation suite, tokenised once."""
        corpus = self.corpus()
        if True not in self._suites:
            tokenizer = (self._model or self.dense()).tokenizer
            self._suites[True] = build_suite(tokenizer, corpus)
        return self._suites[True]

    def _refresh_data(self) -> None:
        spec = self._record().spec
        key = (spec.model, spec.data)
        if key != self._data_key:
            self._corpus, self._suites, self._data_key = None, {}, key

    def _carry_out(self) -> LoadedModel:
        outcome = self._record().prune
        if outcome is None:
            raise NotReadyError("This run has no pruning plan yet. Run its pruning step first.")
        model = self.dense()
        prune_(model.model, model.layout, outcome.plan)
        return model

    def _keep(self, state: object, build: Callable[[], LoadedModel]) -> LoadedModel:
        key = (self._record().spec.model, state)
        if self._model is None or self._model_key != key:
            model = build()
            self._bank = None
            self._model, self._model_key = model, key
        return self._model

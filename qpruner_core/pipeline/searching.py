"""The search as slots: baselines first, then the strategy's trials, each done once however often
it is asked.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from qpruner_core.domain.footprint import dense_bytes, parse_budget
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.record import (
    QuantizationOutcome,
    RunRecord,
    SearchOutcome,
    Trial,
)
from qpruner_core.errors import BadInputError, NonFiniteLossError, NotReadyError
from qpruner_core.pipeline.materials import Materials
from qpruner_core.search.knapsack import best_under, front
from qpruner_core.search.pareto import best_trial, front_numbers
from qpruner_core.search.presets import baselines
from qpruner_core.search.space import SearchSpace
from qpruner_core.search.study import Study
from qpruner_core.store.codec import to_json
from qpruner_core.store.records import RunStore

BASELINE_TIE = "layer"
REFINED = "QPruner-3"


class Searching:
    """One study of one run; built again after a crash from the record and the storage alone."""

    def __init__(self, store: RunStore, run_id: str, materials: Materials) -> None:
        self._store = store
        self._run_id = run_id
        self._materials = materials
        record = store.read(run_id)
        self._spec = record.spec.search
        self._measured = _require_sensitivities(record)
        layout = materials.layout()
        self._layout = layout
        self._space = SearchSpace(layout, self._spec.precisions, self._spec.tie)
        dense = record.load
        if dense is None:
            raise NotReadyError("This run has no model card yet. Run its loading step first.")
        self._budget = parse_budget(self._spec.memory_budget, dense_bytes(dense.layout))
        self._front = front(self._space, self._measured.sensitivities)
        best_under(self._front, self._budget, dense_bytes(dense.layout))
        self._presets = baselines(
            layout, self._measured.mutual_information, self._budget, seed=self._spec.seed
        )
        self._study: Study | None = None

    @property
    def n_slots(self) -> int:
        """Baselines and trials together."""
        return len(self._presets) + self._spec.n_trials

    def slot(self, index: int) -> Trial:
        """Measure what belongs into a slot, unless it has been measured."""
        names = list(self._presets)
        if index < len(names):
            return self._baseline(-1 - index, names[index], self._presets[names[index]])
        return self._trial(index - len(names))

    def finish(self) -> SearchOutcome:
        """Return the slot of *search*: everything measured, the front, and the best under the
        budget.
        """
        known = self._read_baselines()
        trials = self._open().trials()
        known += self._refined(known, trials)
        everything = (*known, *trials)
        return SearchOutcome(
            spec=self._spec,
            budget_bytes=self._budget,
            study_name=self._study_name(),
            baselines=known,
            trials=trials,
            front=front_numbers(everything, self._spec.objective),
            chosen=best_trial(everything, self._spec.objective, self._budget),
        )

    def measure(self, plan: PrecisionPlan) -> Metrics:
        """Measure one plan on the pruned model: point every Linear at its candidate and
        evaluate.
        """
        precisions = tuple(dict.fromkeys((*self._bank_precisions(), *plan.precisions.values())))
        bank = self._materials.bank(precisions)
        bank.apply(plan)
        return self._materials.suite().evaluate(
            bank.model,
            weight_bytes=self._space.bytes(plan),
            device_name=self._materials.device.name,
        )

    def _bank_precisions(self) -> tuple[str, ...]:
        used = [name for plan in self._presets.values() for name in plan.precisions.values()]
        return tuple(dict.fromkeys((*self._spec.precisions, *used)))

    def _baseline(self, number: int, name: str, plan: PrecisionPlan) -> Trial:
        known = self._read_baselines()
        for trial in known:
            if trial.name == name:
                return trial
        trial = Trial(number=number, name=name, plan=plan, metrics=self.measure(plan))
        self._store.write_value(self._run_id, self._baselines_name(), (*known, trial))
        return trial

    def _trial(self, slot: int) -> Trial:
        study = self._open()
        proposal = study.propose(slot)
        if proposal.exhausted or proposal.done:
            return _numbered(study.trials(), proposal.number)
        try:
            study.record(proposal.number, self.measure(proposal.plan))
        except NonFiniteLossError as error:
            study.fail(proposal.number, str(error))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            study.fail(
                proposal.number,
                "The device ran out of memory while measuring this plan. Evaluate with shorter "
                "sequences, or on a device with more memory.",
            )
        return _numbered(study.trials(), proposal.number)

    def _open(self) -> Study:
        if self._study is None:
            measured = {
                trial.plan.key: trial.metrics
                for trial in self._read_baselines()
                if trial.metrics is not None
            }
            self._study = Study.open(
                self._store.study_url(),
                self._study_name(),
                self._space,
                self._spec,
                self._budget,
                seeds=[point.plan for point in self._front],
                measured=measured,
            )
        return self._study

    def _refined(self, known: tuple[Trial, ...], trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
        """Name the best plan of the paper's space under the budget: QPruner-2, refined by the
        search.
        """
        candidates = [
            trial
            for trial in (*known, *trials)
            if trial.metrics is not None and self._is_of_the_paper(trial.plan)
        ]
        within = [t for t in candidates if t.metrics and t.metrics.weight_bytes <= self._budget]
        if not within:
            return ()
        number = best_trial(tuple(within), self._spec.objective, self._budget)
        best = _numbered(tuple(within), number)
        lowest = min((trial.number for trial in known), default=0)
        return (replace(best, number=lowest - 1, name=REFINED),)

    def _is_of_the_paper(self, plan: PrecisionPlan) -> bool:
        by_layer: dict[int, set[str]] = {}
        for linear in self._layout.linears:
            by_layer.setdefault(linear.layer, set()).add(plan.precisions[linear.name])
        return all(len(used) == 1 and used <= {"nf4", "int8"} for used in by_layer.values())

    def _read_baselines(self) -> tuple[Trial, ...]:
        return (
            self._store.read_value(self._run_id, self._baselines_name(), tuple[Trial, ...]) or ()
        )

    def _fingerprint(self) -> str:
        """Equal for equal questions: the spec without its number of trials, and the pruned
        model.
        """
        record = self._store.read(self._run_id)
        spec = replace(self._spec, n_trials=1)
        parts = [to_json(spec), to_json(record.spec.model), to_json(record.spec.data)]
        if record.prune is not None:
            parts.append(to_json(record.prune.plan))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    def _study_name(self) -> str:
        return f"{self._run_id}-{self._fingerprint()}"

    def _baselines_name(self) -> str:
        return f"baselines-{self._fingerprint()}"


def _numbered(trials: tuple[Trial, ...], number: int) -> Trial:
    return next(trial for trial in trials if trial.number == number)


def _require_sensitivities(record: RunRecord) -> QuantizationOutcome:
    outcome = record.quantize
    if outcome is None:
        raise NotReadyError(
            "This run has no sensitivities yet. Run its quantising step first: it measures what every "
            "precision costs in every layer."
        )
    spec = record.spec.search
    if outcome.tie != spec.tie or set(spec.precisions) - set(outcome.precisions):
        raise BadInputError(
            f"The sensitivities were measured for ties by {outcome.tie} and {', '.join(outcome.precisions)}, "
            f"but the search asks for ties by {spec.tie} and {', '.join(spec.precisions)}. Run the "
            f"quantising step again with these choices."
        )
    return outcome

"""One method per verb; each fills one slot of the record and says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import Any

from qpruner_core.catalog import check_spec
from qpruner_core.domain.compression import CompressionOutcome
from qpruner_core.domain.harness import still_true
from qpruner_core.domain.measured import measured_trial
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import OnProgress, Progress, never, silent
from qpruner_core.domain.record import (
    STEPS,
    ComparedPruning,
    ExportOutcome,
    ImportanceOutcome,
    ModelCard,
    QuantizationOutcome,
    RunRecord,
    Trial,
)
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.reproduction import ReproductionSpec
from qpruner_core.domain.spec import PruningSpec, RunSpec
from qpruner_core.errors import BadInputError, NotReadyError, StoppedError
from qpruner_core.importance import score, table
from qpruner_core.inspection import inspect_model
from qpruner_core.models.device import Device
from qpruner_core.pipeline.beginning import check_feasible, merged
from qpruner_core.pipeline.comparing import Comparing, row_words
from qpruner_core.pipeline.compressing import compress_run
from qpruner_core.pipeline.cutting import Cutting
from qpruner_core.pipeline.exporting import export_trial, kept_where_refused
from qpruner_core.pipeline.fingerprint import Fingerprints
from qpruner_core.pipeline.materials import Materials, bytes_16_bit
from qpruner_core.pipeline.quantizing import measure_signals
from qpruner_core.pipeline.recovering import Asked, end_training, known_before, recover_plan
from qpruner_core.pipeline.reproducing import Reproducing
from qpruner_core.pipeline.samples import continue_text
from qpruner_core.pipeline.searching import THIS_PROCESS, Searching, told_values
from qpruner_core.pipeline.timing import with_times
from qpruner_core.search.pareto import front_numbers
from qpruner_core.store.records import RunStore


class Line:
    """One run going down the line; safe to build again after a crash, as the record says all.

    Whoever calls it listens through ``on_progress`` and writes what it hears where it wants it.
    """

    def __init__(
        self,
        store: RunStore,
        run_id: str,
        device: Device,
        on_progress: OnProgress = silent,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        self._store = store
        self._run_id = run_id
        self.on_progress = on_progress
        self.should_stop = should_stop
        self._materials = Materials(
            self.record, device, lambda artifact: store.read_arrays(run_id, artifact)
        )
        self._cutting = Cutting(store, self.record, self._materials)
        self._comparing = Comparing(store, self.record, self._materials, self._cutting)
        self._table: Reproducing | None = None
        self._searching: Searching | None = None
        self._search_key: object = None
        self._search_seconds = 0.0
        self._will_train = False
        self._last_export: ExportOutcome | None = None

    @property
    def materials(self) -> Materials:
        """The models of the run."""
        return self._materials

    def record(self) -> RunRecord:
        """Return the record as it stands on disk."""
        return self._store.read(self._run_id)

    def begin(self, spec: RunSpec, steps: tuple[str, ...]) -> None:
        """Take a job's spec into the record and empty the slots that it will fill, and all after.

        Safe to repeat. What can be refused without computing is refused here.

        Raises:
            QPrunerError: A name, a budget or a ratio that cannot work for this model.
        """
        check_spec(spec)
        first = min(STEPS.index(step) for step in steps)
        spec = merged(self.record().spec, spec, first)
        check_feasible(self.record(), spec, steps)
        self._will_train = "recover" in steps and spec.recovery.steps > 0
        self._last_export = self.record().export if steps == ("export",) else None
        emptied: dict[str, Any] = dict.fromkeys(STEPS[first:])
        if first <= STEPS.index("score"):
            emptied["comparison"] = None
        emptied["harness"] = still_true(self.record().harness, STEPS[first], STEPS)
        self._store.write(replace(self.record(), spec=spec, **emptied))
        self._leave_search()

    def step(self, name: str) -> None:
        """Run one verb to its end and fill its slot."""
        verbs: dict[str, Callable[[], object]] = {
            "load": self._load,
            "score": self._score,
            "prune": lambda: self._cutting.prune(lambda *told: self._tell("prune", *told)),
            "quantize": self._quantize,
            "evaluate": self._evaluate,
            "recover": self._recover,
            "export": self._export,
        }
        if name not in verbs:
            raise BadInputError(
                f"The line has no step {name!r}. Choose one of {', '.join(STEPS)}."
            )
        if STEPS.index(name) <= STEPS.index("quantize"):
            self._materials.renew()  # what is measured from here on is of the files as they are
        self._tell(name, 0, 1)
        started = perf_counter()
        outcome = verbs[name]()
        self._fill(name, outcome, perf_counter() - started)
        if isinstance(outcome, RecoveryOutcome):
            end_training(self._store, self._run_id, outcome)
        self._tell(name, 1, 1)

    def run(self, name: str) -> None:
        """Run one verb to its end, the search included, in this process."""
        if name != "search":
            self.step(name)
            return
        # A plan whose training was stopped is measured when the search goes on.
        with suppress(StoppedError):
            for index in range(self.search_begin()):
                if self.should_stop():
                    break
                self.search_baseline(index)
            while not self.should_stop() and self.search_next(THIS_PROCESS, alone=True):
                pass
        self.search_finish()

    # the verbs ------------------------------------------------------------------------------

    def _load(self) -> ModelCard:
        card = inspect_model(self.record().spec.model)
        self._materials.dense()
        if self._will_train:
            # Text that fills no row is refused now, not after the search.
            self._materials.training(self.record().spec.recovery)
        return card

    def _score(self) -> ImportanceOutcome:
        spec = self.record().spec.importance
        dense = self._materials.dense()
        ids = self._materials.corpus().calibration
        scores = score(dense.model, dense.layout, ids, spec, self.on_progress)
        arrays = {
            f"{criterion}/{group}": values
            for criterion, groups in scores.unit_scores.items()
            for group, values in groups.items()
        }
        return ImportanceOutcome(
            spec=spec,
            cells=table(scores),
            unit_scores=self._store.write_arrays(self._run_id, "unit_scores", arrays),
            n_tokens=scores.n_tokens,
            device=dense.device.name,
            agreement=scores.agreement,
            warnings=scores.warnings,
        )

    def _quantize(self) -> QuantizationOutcome:
        record, materials = self.record(), self._materials
        measured = measure_signals(record, materials, self._cutting.decide, self.on_progress)
        weights = Fingerprints(self._store, self._run_id).weights(record)
        return with_times(record, materials, replace(measured, weights=weights))

    def _evaluate(self) -> Metrics:
        pruned = self._materials.pruned()
        return self._materials.full_suite().evaluate(
            pruned.model,
            weight_bytes=bytes_16_bit(self._materials.layout()),
            device_name=pruned.device.name,
            speed=True,
        )

    def _recover(self) -> RecoveryOutcome:
        record = self.record()
        trial = self._trial(record.spec.recovery.trial)
        asked = Asked(
            plan=trial.plan,
            spec=replace(record.spec.recovery, trial=trial.number),
            before=known_before(self._store, record, self._materials, trial.plan),
        )
        told = (self.on_progress, self.should_stop)
        suite = self._materials.suite()
        return recover_plan(self._store, record, self._materials, asked, suite, *told)

    def _export(self) -> ExportOutcome:
        record = self.record()
        trial = self._trial(record.spec.export.trial)
        told = (trial, lambda *told: self._tell("export", *told))
        with kept_where_refused(self._store, self._run_id, self._last_export):
            return export_trial(self._store, record, self._materials, *told)

    # the search, plan by plan -----------------------------------------------------------------

    def search_begin(self) -> int:
        """Return how many baselines the search has; they are measured before its trials."""
        search = self._search()
        left_out = ", ".join(search.left_out)
        words = f"left out, as 4-bit blocks do not fit the widths: {left_out}" if left_out else ""
        self._tell("search", 0, search.n_plans, words)
        return search.n_baselines

    def search_baseline(self, index: int) -> Trial:
        """Measure a baseline; one that was measured before is only read."""
        search, started = self._search(), perf_counter()
        trial = search.baseline(index)
        self._tell_measured(trial, index + 1, perf_counter() - started)
        return trial

    def search_next(self, owner: str, *, alone: bool = False) -> Trial | None:
        """Claim the plan to measure next, and measure it; None when nothing is left to claim.

        Args:
            owner: Who claims it: a worker's name, or that of this process.
            alone: Whether the caller is the run's only writer, so that what others left running
                is taken up too. Without it, several workers may call this at the same time.

        Raises:
            StoppedError: It was asked to stop while the plan was trained.
        """
        search, started = self._search(), perf_counter()
        found = search.next(owner, alone=alone)
        if found is None:
            ending = search.ending()
            if ending:
                self._tell("search", search.n_plans, search.n_plans, ending)
            return None
        trial, n_finished = found
        self._tell_measured(trial, search.n_baselines + n_finished, perf_counter() - started)
        return trial

    def _tell_measured(self, trial: Trial, done: int, seconds: float) -> None:
        self._search_seconds += seconds
        words, values = trial.name or f"trial {trial.number}", told_values(trial, seconds)
        self._tell("search", done, self._search().n_plans, words, values)

    def search_finish(self) -> None:
        """Fill the slot of *search* from everything that was measured."""
        found = self._search().finish()
        measured = [
            trial.metrics.seconds
            for trial in (*found.baselines, *found.trials)
            if trial.metrics is not None and not trial.metrics.measured_in
        ]
        n_workers = len({trial.worker for trial in found.trials if trial.worker})
        # A search that was taken up by another process took longer than this one has seen.
        self._fill("search", found, max(self._search_seconds, sum(measured) / max(1, n_workers)))
        self._leave_search()

    # between the verbs --------------------------------------------------------------------------

    def measure(self, plan: PrecisionPlan) -> Trial:
        """Measure a plan made by hand and add it to the run's search.

        Raises:
            NotReadyError: The run has no finished search to add it to.
        """
        found = self.record().search
        if found is None:
            raise NotReadyError(
                "This run has no finished search yet. Search first, then measure by hand."
            )
        for known in (*found.trials, *found.baselines):
            if known.plan.key == plan.key and known.metrics is not None:
                return known
        trial = self._search().by_hand(plan)
        trials = (*found.trials, trial)
        asked = (found.spec.objective, found.spec.cost)
        numbers = front_numbers((*trials, *found.baselines), *asked)
        extended = replace(found, trials=trials, front=numbers)
        self._store.write(replace(self.record(), search=extended))
        return trial

    def compare_begin(self, spec: PruningSpec) -> tuple[tuple[str, str], ...]:
        """Return the prunings to compare, as criterion and compensation (see `Comparing`)."""
        self._tell("prune", 0, 1, "the dense model, to compare with")
        return self._comparing.begin(spec)

    def compare_one(self, criterion: str, compensation: str, spec: PruningSpec) -> ComparedPruning:
        """Prune by one criterion and measure what is left; only read where that is known."""
        row = self._comparing.one(criterion, compensation, spec)
        done, total = self._comparing.progress()
        words = f"compared: {row_words(criterion, compensation)}"
        values = {"loss": row.metrics.loss, "accuracy": row.metrics.accuracy}
        self._tell("prune", done, total, words, values)
        return row

    def compare(self, spec: PruningSpec) -> None:
        """Compare all scored criteria in this process, until asked to stop."""
        for criterion, compensation in self.compare_begin(spec):
            if self.should_stop():
                break
            self.compare_one(criterion, compensation, spec)

    def compress(self, spec: RunSpec) -> CompressionOutcome:
        """Prune and write the model layer by layer, whatever its size (see `streaming`).

        Raises:
            StoppedError: It was asked to stop between two layers.
        """
        self._leave_search()
        self._materials.let_go()
        told = (self.on_progress, self.should_stop)
        return compress_run(self._store, self._run_id, spec, self._materials.device, *told)

    def reproduce_begin(self, spec: ReproductionSpec) -> None:
        """Begin the paper's table on this run's model, or go on with it (see `Reproducing`)."""
        self._leave_search()
        self._materials.let_go()
        self._reproducing().begin(spec)

    def reproduce_next(self, owner: str) -> str:
        """Do the next piece of the table; empty when it is complete (see `Reproducing`)."""
        return self._reproducing().next(owner)

    def generate(self, prompt: str, trial: int | None) -> dict[str, str]:
        """Return what the original and the compressed model say after a prompt."""
        chosen = self._trial(trial)
        dense = self._materials.dense()
        original = continue_text(dense.model, dense.tokenizer, prompt)
        precisions = tuple(dict.fromkeys(chosen.plan.precisions.values()))
        bank = self._materials.bank(precisions, chosen.plan.levels)
        bank.apply(chosen.plan)
        compressed = continue_text(bank.model, dense.tokenizer, prompt)
        bank.restore()
        return {"prompt": prompt, "original": original, "compressed": compressed}

    # helpers ------------------------------------------------------------------------------------

    def _reproducing(self) -> Reproducing:
        def line_of(run_id: str, tell: OnProgress) -> Line:
            stop = self.should_stop
            return Line(self._store, run_id, self._materials.device, tell, stop)

        if self._table is None:
            told = (self.on_progress, self.should_stop)
            self._table = Reproducing(self._store, self._run_id, line_of, *told)
        return self._table

    def _search(self) -> Searching:
        record = self.record()
        key = (record.study_name, record.spec.search, record.spec.recovery)
        if self._searching is None or self._search_key != key:
            self._leave_search()
            told = (self._materials, self._asked_to_stop)
            self._searching = Searching(self._store, record, *told)
            self._search_key, self._search_seconds = key, 0.0
        return self._searching

    def _asked_to_stop(self) -> bool:
        return self.should_stop()  # whoever is asked by then

    def _leave_search(self) -> None:
        if self._searching is not None:
            self._searching.close()
            self._searching = None

    def _trial(self, number: int | None) -> Trial:
        return measured_trial(self.record(), number)

    def _fill(self, name: str, outcome: object, seconds: float) -> None:
        record = self.record()
        changed: dict[str, Any] = {name: outcome, "seconds": {**record.seconds, name: seconds}}
        self._store.write(replace(record, **changed))

    def _tell(
        self,
        step: str,
        done: int,
        total: int,
        message: str = "",
        values: Mapping[str, float] | None = None,
    ) -> None:
        self.on_progress(
            Progress(step=step, done=done, total=total, message=message, values=values or {})
        )

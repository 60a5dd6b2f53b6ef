"""One method per verb; each fills one slot of the record and says how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch

from qpruner_core.catalog import EXPORTERS, check_spec, precision_formats
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.progress import OnProgress, Progress, silent
from qpruner_core.domain.record import (
    STEPS,
    ExportOutcome,
    ImportanceOutcome,
    PruningOutcome,
    QuantizationOutcome,
    RecoveryOutcome,
    RunRecord,
    Trial,
)
from qpruner_core.domain.spec import RunSpec
from qpruner_core.errors import NotReadyError
from qpruner_core.export.verify import reload_check, weight_file_bytes
from qpruner_core.importance import layer_signal, score, table
from qpruner_core.inspection import inspect_model
from qpruner_core.models.device import Device
from qpruner_core.pipeline.materials import Materials
from qpruner_core.pipeline.samples import continue_text, prompts_from
from qpruner_core.pipeline.searching import Searching
from qpruner_core.pruning.selection import select
from qpruner_core.quantization.packing import pack_
from qpruner_core.quantization.sensitivity import measure
from qpruner_core.recovery.lora import recover
from qpruner_core.search.space import SearchSpace
from qpruner_core.store.records import RunStore

N_PROBE_TOKENS = 48


def never() -> bool:
    """Nobody asks to stop."""
    return False


class Line:
    """One run going down the line; safe to build again after a crash, as the record says all."""

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
        self._materials = Materials(self.record, device)

    def record(self) -> RunRecord:
        """Return the record as it stands on disk."""
        return self._store.read(self._run_id)

    def begin(self, spec: RunSpec, steps: tuple[str, ...]) -> None:
        """Take a job's spec over into the record and empty the slots that it will fill, and all
        after.

        Safe to repeat: emptying an empty slot changes nothing.
        """
        check_spec(spec)
        first = min(STEPS.index(step) for step in steps)
        emptied: dict[str, Any] = dict.fromkeys(STEPS[first:])
        self._store.write(replace(self.record(), spec=spec, **emptied))

    def step(self, name: str) -> None:
        """Run one verb to its end and fill its slot."""
        verb = getattr(self, f"_{name}", None)
        if name not in STEPS or verb is None:
            raise NotReadyError(f"The line has no step {name!r}. Known: {', '.join(STEPS)}.")
        self._tell(name, 0, 1)
        started = perf_counter()
        outcome = verb()
        self._fill(name, outcome, perf_counter() - started)
        self._tell(name, 1, 1)

    # the verbs --------------------------------------------------------------------------------

    def _load(self) -> object:
        card = inspect_model(self.record().spec.model)
        self._materials.dense()
        return card

    def _score(self) -> object:
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
        )

    def _prune(self) -> object:
        spec = self.record().spec.pruning
        dense = self._materials.dense()
        suite = self._materials.suite()
        chosen = select(dense.layout, self._unit_scores(spec.criterion), spec)
        prompts = prompts_from(self._materials.corpus().heldout, dense.tokenizer)
        formats = precision_formats()

        def look(layout: Any) -> tuple[Any, list[str]]:
            size = plan_bytes(layout, PrecisionPlan.uniform(layout, "bf16"), formats)
            metrics = suite.evaluate(dense.model, weight_bytes=size, device_name=dense.device.name)
            return metrics, [continue_text(dense.model, dense.tokenizer, p) for p in prompts]

        before, said_before = look(dense.layout)
        self._tell("prune", 1, 3, "cutting units")
        self._materials.cut(chosen.plan)
        self._tell("prune", 2, 3, "measuring what is left")
        after, said_after = look(chosen.layout)
        return PruningOutcome(
            spec=spec,
            plan=chosen.plan,
            layout=chosen.layout,
            parameters_before=dense.layout.parameters,
            parameters_after=chosen.layout.parameters,
            before=before,
            after=after,
            samples=tuple(zip(prompts, said_before, said_after, strict=True)),
            warnings=chosen.warnings,
        )

    def _quantize(self) -> object:
        spec = self.record().spec
        layout = self._materials.layout()
        ids = self._materials.corpus().calibration
        model = self._materials.pruned()
        self._tell("quantize", 0, 1, "mutual information per layer")
        information = layer_signal(
            "mutual_information",
            model.model,
            layout,
            ids,
            self._signal_options(),
            spec.search.seed,
        )
        bank = self._materials.bank(spec.search.precisions)
        space = SearchSpace(layout, spec.search.precisions, spec.search.tie)
        measured = measure(bank, space.units, ids, self.on_progress)
        return QuantizationOutcome(
            tie=spec.search.tie,
            precisions=spec.search.precisions,
            sensitivities=measured.cells,
            loss_16_bit=measured.loss_16_bit,
            mutual_information=tuple(float(value) for value in information),
            device=model.device.name,
        )

    def _evaluate(self) -> object:
        model = self._materials.pruned()
        layout = self._materials.layout()
        size = plan_bytes(layout, PrecisionPlan.uniform(layout, "bf16"), precision_formats())
        return self._materials.full_suite().evaluate(
            model.model, weight_bytes=size, device_name=model.device.name, speed=True
        )

    def _recover(self) -> object:
        record = self.record()
        trial = self._trial(record.spec.recovery.trial)
        layout = self._materials.layout()
        training = self._materials.corpus().training
        suite = self._materials.suite()
        taken = self._materials.take_pruned()
        pack_(taken.model, layout, trial.plan, taken.device.compute_dtype)
        size = plan_bytes(layout, trial.plan, precision_formats())
        recovered = recover(
            taken.model,
            layout,
            trial.plan,
            record.spec.recovery,
            training,
            evaluate=lambda model: suite.evaluate(
                model, weight_bytes=size, device_name=taken.device.name
            ),
            folder=self._store.artifact_folder(self._run_id, "adapter"),
            on_progress=self.on_progress,
            should_stop=self.should_stop,
        )
        return RecoveryOutcome(
            spec=replace(record.spec.recovery, trial=trial.number),
            before=recovered.before,
            after=recovered.after,
            losses=recovered.losses,
            adapter=recovered.adapter,
            trainable_parameters=recovered.trainable_parameters,
            estimated_memory_bytes=recovered.estimated_memory_bytes,
            peak_memory_bytes=recovered.peak_memory_bytes,
        )

    def _export(self) -> object:
        record = self.record()
        trial = self._trial(record.spec.export.trial)
        spec = replace(record.spec.export, trial=trial.number)
        exporter = EXPORTERS.target(spec.format)
        folder = (
            Path(spec.out) if spec.out else self._store.artifact_folder(self._run_id, spec.format)
        )
        plan = exporter.plan_of(trial.plan)
        ids = self._materials.corpus().heldout[:2, :N_PROBE_TOKENS]
        self._tell("export", 0, 3, "reference logits")
        expected = self._reference_logits(plan, ids)
        taken = self._materials.take_pruned()
        self._tell("export", 1, 3, f"writing {folder.name}")
        exporter.export(taken, self._export_facts(trial, plan), folder)
        self._tell("export", 2, 3, "reloading in a fresh process")
        check = reload_check(folder, ids, expected)
        layout = self._materials.layout()
        return ExportOutcome(
            spec=spec,
            path=str(folder),
            size_bytes=weight_file_bytes(folder),
            planned_bytes=plan_bytes(layout, plan, precision_formats()),
            reload_logits_equal=check.equal,
            max_logit_difference=check.max_difference,
            files=exporter_files(folder),
        )

    # the search, slot by slot ------------------------------------------------------------------

    def search_begin(self) -> int:
        """Return how many slots the search has: baselines and trials."""
        n_slots = self._search().n_slots
        self._tell("search", 0, n_slots)
        return n_slots

    def search_trial(self, slot: int) -> Trial:
        """Measure what belongs into a slot; a slot that was measured before is only read."""
        search = self._search()
        started = perf_counter()
        trial = search.slot(slot)
        values = {"seconds": perf_counter() - started}
        if trial.metrics is not None:
            values |= {
                "loss": trial.metrics.loss,
                "accuracy": trial.metrics.accuracy,
                "weight_bytes": float(trial.metrics.weight_bytes),
            }
        self._seconds_of_search += values["seconds"]
        words = trial.name or f"trial {trial.number}"
        self._tell("search", slot + 1, search.n_slots, words, values)
        return trial

    def search_finish(self) -> None:
        """Fill the slot of *search* from everything that was measured."""
        self._fill("search", self._search().finish(), self._seconds_of_search)
        self._searching = None

    def run(self, name: str) -> None:
        """Run one verb to its end, whichever it is, in this process."""
        if name != "search":
            return self.step(name)
        for slot in range(self.search_begin()):
            if self.should_stop():
                break
            self.search_trial(slot)
        return self.search_finish()

    # between the verbs ---------------------------------------------------------------------------

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
        number = 1 + max((trial.number for trial in found.trials), default=-1)
        metrics = self._search().measure(plan)
        trial = Trial(number=number, name="by hand", plan=plan, metrics=metrics)
        trials = (*found.trials, trial)
        numbers = front_numbers((*found.baselines, *trials), found.spec.objective)
        self._store.write(
            replace(self.record(), search=replace(found, trials=trials, front=numbers))
        )
        return trial

    def generate(self, prompt: str, trial: int | None) -> dict[str, str]:
        """Return what the original and the compressed model say after a prompt."""
        chosen = self._trial(trial)
        dense = self._materials.dense()
        original = continue_text(dense.model, dense.tokenizer, prompt)
        bank = self._materials.bank(tuple(dict.fromkeys(chosen.plan.precisions.values())))
        bank.apply(chosen.plan)
        model = self._materials.pruned_as_it_is()
        compressed = continue_text(model.model, model.tokenizer, prompt)
        return {"prompt": prompt, "original": original, "compressed": compressed}

    # helpers ---------------------------------------------------------------------------------------

    def _search(self) -> Searching:
        if self._searching is None:
            self._searching = Searching(self._store, self._run_id, self._materials)
            self._seconds_of_search = 0.0
        return self._searching

    def _unit_scores(self, criterion: str) -> dict[str, np.ndarray]:
        outcome = self.record().score
        if outcome is None:
            raise NotReadyError("This run has no importance scores yet. Score it first.")
        arrays = self._store.read_arrays(self._run_id, outcome.unit_scores)
        prefix = f"{criterion}/"
        found = {
            key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)
        }
        if not found:
            raise NotReadyError(
                f"This run was not scored by {criterion!r}, only by {', '.join(outcome.spec.criteria)}. "
                f"Score it again with {criterion!r} among the criteria, or prune by one of those."
            )
        return found

    def _signal_options(self) -> dict[str, Any]:
        name = "mutual_information"
        return CRITERIA.options(name, self.record().spec.importance.options.get(name, {}))

    def _trial(self, number: int | None) -> Trial:
        found = self.record().search
        if found is None:
            raise NotReadyError("This run has no measured plans yet. Search first.")
        wanted = found.chosen if number is None else number
        for trial in (*found.trials, *found.baselines):
            if trial.number == wanted and trial.metrics is not None:
                return trial
        raise BadInputError(
            f"This run has no measured plan number {wanted}. Choose one of those on the Results page or "
            f"of 'qpruner runs {self._run_id} --json'."
        )

    @torch.no_grad()
    def _reference_logits(self, plan: PrecisionPlan, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the pruned model with every weight quantised and dequantised once."""
        bank = self._materials.bank(tuple(dict.fromkeys(plan.precisions.values())))
        bank.apply(plan)
        logits = bank.model(ids.to(bank.device.torch)).logits.float().cpu()
        bank.restore()
        return logits

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
        values: dict[str, float] | None = None,
    ) -> None:
        self.on_progress(
            Progress(step=step, done=done, total=total, message=message, values=values or {})
        )

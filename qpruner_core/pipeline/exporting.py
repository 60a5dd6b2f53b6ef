"""From a measured plan to a folder and the proof that it reloads.

Packing and proof happen on the CPU in float32 whatever device measured the plan: the arithmetic of
a folder must not depend on the machine that wrote it.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qpruner_core.catalog import EXPORTERS, precision_formats
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.record import FIRST_BY_HAND, ExportOutcome, RunRecord, Trial
from qpruner_core.errors import NotReadyError
from qpruner_core.export import ExportFacts
from qpruner_core.export.card import MANIFEST
from qpruner_core.export.verify import reference_logits, reload_check, weight_file_bytes
from qpruner_core.models.device import pick_device
from qpruner_core.pipeline.asked import options_of
from qpruner_core.pipeline.joint import levels_words
from qpruner_core.pipeline.materials import Materials
from qpruner_core.quantization.packing import pack_
from qpruner_core.store.records import RunStore

N_PROBE_SEQUENCES = 2
N_PROBE_TOKENS = 48

Tell = Callable[[int, int, str], None]
"""Called with pieces done, all pieces, and what comes next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What the model of a plan has lost."""

    plan: PruningPlan
    layout: ModelLayout
    """Layout of what is left."""


def export_trial(
    store: RunStore, record: RunRecord, materials: Materials, trial: Trial, tell: Tell
) -> ExportOutcome:
    """Write a measured plan as a checkpoint, open it in a fresh process and compare its logits."""
    spec = replace(record.spec.export, trial=trial.number)
    exporter = EXPORTERS.target(spec.format)
    levels = trial.plan.levels
    layout = materials.layout(levels)
    plan = replace(exporter.plan_written(layout, trial.plan), levels=levels)
    if materials.device.kind != "cpu":
        materials = materials.elsewhere(pick_device("cpu"))
    ids = materials.corpus().heldout[:N_PROBE_SEQUENCES, :N_PROBE_TOKENS]
    tell(0, 3, "reference logits")
    expected = _expected(materials, plan, ids)
    folder = _folder(store, record, trial)
    tell(1, 3, f"writing {folder.name}")
    pruned = Pruned(plan=materials.pruning(levels), layout=layout)
    facts = _facts(record, trial, plan, pruned)
    taken = materials.take_pruned(levels)
    pack_(taken.model, layout, plan, taken.device.compute_dtype)
    exporter.export(taken.model, taken.tokenizer, facts, folder)
    tell(2, 3, "opening it in a fresh process")
    try:
        check = reload_check(folder, ids, expected, trust_remote_code=any(folder.glob("*.py")))
    except BaseException:
        # What nobody has opened is not done, and would stand in the way of the next attempt.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return ExportOutcome(
        spec=spec,
        path=str(folder),
        size_bytes=weight_file_bytes(folder),
        planned_bytes=plan_bytes(layout, plan, precision_formats()),
        reload_logits_equal=check.equal,
        max_logit_difference=check.max_difference,
        files=_files(folder),
    )


def _expected(materials: Materials, plan: PrecisionPlan, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the pruned model with every weight quantised and dequantised once."""
    precisions = tuple(dict.fromkeys(plan.precisions.values()))
    bank = materials.bank(precisions, plan.levels)
    bank.apply(plan)
    logits = reference_logits(bank.model, ids)
    bank.restore()
    return logits


def _folder(store: RunStore, record: RunRecord, trial: Trial) -> Path:
    """Return where to write: where the person said, else among the run's artifacts."""
    spec = record.spec.export
    if spec.out is not None:
        return Path(spec.out)
    return store.artifact_folder(record.run_id, f"{spec.format}-plan{trial.number}")


def _facts(record: RunRecord, trial: Trial, plan: PrecisionPlan, pruned: Pruned) -> ExportFacts:
    if record.load is None or record.prune is None:
        raise NotReadyError("This run has no pruned model yet. Run its pruning step first.")
    measured: dict[str, Metrics] = {"dense, 16 bit": record.prune.before}
    # At 16 bit, the run's own pruning is measured, but none that a joint plan puts together.
    if not trial.plan.levels:
        measured["pruned, 16 bit"] = record.prune.after
    if trial.metrics is not None and plan == trial.plan:
        measured["pruned, this plan"] = trial.metrics
    recovered = record.recover if record.spec.export.include_adapter else None
    adapter = None
    # An adapter belongs to the weights that it was trained on.
    if recovered is not None and recovered.spec.trial == trial.number and plan == trial.plan:
        adapter = Path(recovered.adapter) if recovered.adapter else None
    if recovered is not None and adapter is not None:
        measured["with the adapter"] = recovered.after
    return ExportFacts(
        card=record.load,
        layout=pruned.layout,
        pruning=pruned.plan,
        plan=plan,
        measured=measured,
        adapter=adapter,
        notes=_notes(record, plan, pruned),
        command=_command(record, trial),
    )


def _notes(record: RunRecord, plan: PrecisionPlan, pruned: Pruned) -> tuple[str, ...]:
    """Return what a joint search chose, as a sentence; none of any other."""
    if record.load is None or record.quantize is None or record.spec.search.joint == "none":
        return ()
    words = levels_words(record.load.layout, pruned.layout, record.quantize.levels, plan)
    return (words,) if words else ()


def _command(record: RunRecord, trial: Trial) -> str:
    """Return the command lines that go the same way again, default settings left out.

    Empty for a plan made by hand, which no command makes.
    """
    if trial.number >= FIRST_BY_HAND:
        return ""
    words = shlex.join(["qpruner", "run", *options_of(record.spec)])
    if record.search is not None and trial.number != record.search.chosen:
        words += f"\nqpruner export RUN_ID --trial={trial.number} --out=FOLDER"
    return words


def _files(folder: Path) -> dict[str, str]:
    listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    return {name: str(facts["sha256"]) for name, facts in listed.items()}

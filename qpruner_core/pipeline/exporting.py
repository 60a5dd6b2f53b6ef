"""From a measured plan to a folder and the proof that it reloads.

Packing and proof happen on the CPU in float32 whatever device measured the plan: the arithmetic of
a folder must not depend on the machine that wrote it.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qpruner_core.catalog import EXPORTERS, precision_formats
from qpruner_core.domain.footprint import plan_bytes
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.record import FIRST_BY_HAND, ExportOutcome, RunRecord, Trial
from qpruner_core.domain.spec import ExportSpec
from qpruner_core.errors import MergeRefusedError, NotReadyError
from qpruner_core.export import ExportFacts
from qpruner_core.export.card import MANIFEST
from qpruner_core.export.verify import reference_logits, reload_check, weight_file_bytes
from qpruner_core.models.device import pick_device
from qpruner_core.models.loader import LoadedModel
from qpruner_core.pipeline.asked import options_of
from qpruner_core.pipeline.joint import levels_words
from qpruner_core.pipeline.materials import Materials
from qpruner_core.pipeline.merging import Carried, accepted, carried, merge_, shift_
from qpruner_core.quantization.bank import Bank
from qpruner_core.quantization.packing import pack_
from qpruner_core.store.records import RunStore

N_PROBE_SEQUENCES = 2
N_PROBE_TOKENS = 48

Tell = Callable[[int, int, str], None]
"""Called with pieces done, all pieces, and what comes next."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Written:
    """What goes into a folder."""

    trial: Trial
    """The measured plan that was asked for."""
    plan: PrecisionPlan
    """What the format stores of it."""
    pruning: PruningPlan
    """What its model has lost."""
    layout: ModelLayout
    """Layout of what is left."""
    recovery: Carried
    """What of the run's recovery goes along."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ready:
    """A model whose dense weights are those to be packed, and what it must answer then."""

    model: LoadedModel
    expected: torch.Tensor
    """Logits of the probe with every weight quantised and dequantised once."""
    merge_error: float | None
    """As `ExportOutcome.merge_error`."""


def export_trial(
    store: RunStore, record: RunRecord, materials: Materials, trial: Trial, tell: Tell
) -> ExportOutcome:
    """Write a measured plan as a checkpoint, open it in a fresh process and compare its logits.

    Raises:
        MergeRefusedError: The adapter was to be merged, and that changes the logits too much.
        NotReadyError: It was to be merged, and there is none; or the run is not pruned.
        BadInputError: It was to be merged, and belongs to another plan.
    """
    spec = replace(record.spec.export, trial=trial.number)
    exporter = EXPORTERS.target(spec.format)
    levels = trial.plan.levels
    layout = materials.layout(levels)
    plan = replace(exporter.plan_written(layout, trial.plan), levels=levels)
    written = Written(
        trial=trial,
        plan=plan,
        pruning=materials.pruning(levels),
        layout=layout,
        recovery=carried(record, trial, plan, layout),
    )
    if materials.device.kind != "cpu":
        materials = materials.elsewhere(pick_device("cpu"))
    ids = materials.corpus().heldout[:N_PROBE_SEQUENCES, :N_PROBE_TOKENS]
    tell(0, 3, "reference logits")
    ready = _ready(materials, written, spec, ids)
    folder = _folder(store, record, trial)
    tell(1, 3, f"writing {folder.name}")
    facts = _facts(record, written, ready.merge_error)
    model = ready.model
    pack_(model.model, layout, plan, model.device.compute_dtype)
    exporter.export(model.model, model.tokenizer, facts, folder)
    tell(2, 3, "opening it in a fresh process")
    try:
        trust = any(folder.glob("*.py"))
        check = reload_check(folder, ids, ready.expected, trust_remote_code=trust)
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
        merge_error=ready.merge_error,
    )


@contextmanager
def kept_where_refused(
    store: RunStore, run_id: str, before: ExportOutcome | None
) -> Iterator[None]:
    """Keep the last export in the record where a new one is refused, which writes nothing.

    Args:
        store: The runs.
        run_id: The run.
        before: The export that its slot was emptied of; None: there was none.
    """
    try:
        yield
    except MergeRefusedError:
        if before is not None and Path(before.path).is_dir():
            store.write(replace(store.read(run_id), export=before))
        raise


def _ready(materials: Materials, written: Written, spec: ExportSpec, ids: torch.Tensor) -> _Ready:
    """Return the pruned model with the weights that will be packed, and its logits on the probe
    as the format stores it.
    """
    planned, recovery = written.trial.plan, written.recovery
    taken = materials.take_pruned(planned.levels)
    shift_(taken.model, recovery.shifts)
    apart = merge_(taken.model, planned, recovery.adapter, ids) if recovery.merged else None
    precisions = tuple(dict.fromkeys(written.plan.precisions.values()))
    bank = Bank(taken.model, written.layout, precisions, taken.device)
    bank.apply(written.plan)
    expected = reference_logits(bank.model, ids)
    bank.restore()
    error = None if apart is None else accepted(apart, expected, spec)
    return _Ready(model=taken, expected=expected, merge_error=error)


def _folder(store: RunStore, record: RunRecord, trial: Trial) -> Path:
    """Return where to write: where the person said, else among the run's artifacts."""
    spec = record.spec.export
    if spec.out is not None:
        return Path(spec.out)
    return store.artifact_folder(record.run_id, f"{spec.format}-plan{trial.number}")


def _facts(record: RunRecord, written: Written, merge_error: float | None) -> ExportFacts:
    if record.load is None or record.prune is None:
        raise NotReadyError("This run has no pruned model yet. Run its pruning step first.")
    trial, carries = written.trial, written.recovery
    measured: dict[str, Metrics] = {"dense, 16 bit": record.prune.before}
    # At 16 bit, the run's own pruning is measured, but none that a joint plan puts together.
    if not trial.plan.levels:
        measured["pruned, 16 bit"] = record.prune.after
    if trial.metrics is not None and written.plan == trial.plan:
        measured["pruned, this plan"] = trial.metrics
    if carries.recovery is not None:
        label = "with the adapter" + (", before it was merged" if carries.merged else "")
        measured[label] = carries.recovery.after
    return ExportFacts(
        card=record.load,
        layout=written.layout,
        pruning=written.pruning,
        plan=written.plan,
        measured=measured,
        adapter=carries.folder,
        notes=(*_notes(record, written), *_recovery_notes(carries, merge_error)),
        command=_command(record, trial),
    )


def _notes(record: RunRecord, written: Written) -> tuple[str, ...]:
    """Return what a joint search chose, as a sentence; none of any other."""
    if record.load is None or record.quantize is None or record.spec.search.joint == "none":
        return ()
    words = levels_words(record.load.layout, written.layout, record.quantize.levels, written.plan)
    return (words,) if words else ()


def _recovery_notes(carries: Carried, merge_error: float | None) -> tuple[str, ...]:
    """Return what the weights owe to the recovery, as sentences."""
    if merge_error is not None:
        return (
            f"The adapter of the recovery is merged into the weights. On a probe of held-out text "
            f"the logits differ from those of weights and adapter apart by {merge_error:.3g} of "
            f"their norm.",
        )
    if not carries.shifts:
        return ()
    return (
        f"The adapter began with a part of {len(carries.shifts)} weights, which was taken from "
        f"them before they were quantised: these weights belong to the adapter and answer worse "
        f"without it. The row of this plan was measured on weights from which nothing was taken.",
    )


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

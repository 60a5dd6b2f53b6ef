"""What is known of a run: one slot per step of the line, filled by the worker alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

from qpruner_core.domain.compression import CompressionOutcome
from qpruner_core.domain.footprint import dense_bytes, parse_budget
from qpruner_core.domain.harness import HarnessOutcome
from qpruner_core.domain.joint import Level
from qpruner_core.domain.layout import ModelLayout
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan, PruningPlan
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.reproduction import Reproduction
from qpruner_core.domain.spec import (
    ExportSpec,
    ImportanceSpec,
    PruningSpec,
    RunSpec,
    SearchSpec,
)

STRICT = {"extra": "forbid"}

FIRST_BY_HAND = 1_000_000
"""Number of the first plan made by hand: beyond any study, so that numbers never change hands."""

MEASURED = "measured-"
"""Beginning of the names of stored values that each hold what was measured of one plan, whichever
study asked; a copy of a run takes them along."""

STEPS = ("load", "score", "prune", "quantize", "evaluate", "search", "recover", "export")
"""The line, in order; each is a slot of the record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What config and safetensors headers say about a model; no weight was read."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    source: str
    """As asked for: ``demo``, a folder or a hub id."""
    revision: str | None
    """Resolved commit on the hub; None for local folders."""
    title: str
    """Short name for a person."""
    layout: ModelLayout
    """Units and Linears."""
    parameters: int
    """Parameters according to the headers, tied ones counted once."""
    file_bytes: int
    """Bytes of all tensors as they lie in the files."""
    dtype: str
    """Most common dtype of the tensors as safetensors names it, such as ``F16``."""
    max_positions: int
    """Longest sequence the config allows; tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceCell:
    """One value of the importance table."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    layer: int
    """Decoder layer, from 0."""
    module: str
    """``"attention"``, ``"mlp"`` (all experts of a layer are one) or ``"experts"`` (whole ones)
    for unit criteria, ``"layer"`` for layer signals."""
    criterion: str
    """Catalogue name."""
    value: float
    """Mean over the module's units (unit criteria), or the layer's signal; >= 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How alike two criteria rank the units of a model."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    first: str
    """Catalogue name."""
    second: str
    """Catalogue name; each pair stands once."""
    kind: str
    """Kind of unit, a key of `layout.KINDS`."""
    correlation: float
    """Spearman's rank correlation within each group, its mean over the groups of that kind; in
    [-1, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceOutcome:
    """Slot of *score*: the table on screen, and where every unit's score lies."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    spec: ImportanceSpec
    cells: tuple[ImportanceCell, ...]
    unit_scores: str
    """Artifact (npz): ``"<criterion>/<group name>"`` -> float32 (n_units,)."""
    n_tokens: int
    """Calibration tokens seen."""
    device: str
    """Where it was measured."""
    agreement: tuple[Agreement, ...] = ()
    """Rank agreement of every two unit criteria, per kind of unit."""
    warnings: tuple[str, ...] = ()
    """Sentences for the person, such as experts that no calibration token reached."""

    def layer_values(self, criterion: str, module: str = "layer") -> dict[int, float]:
        """Return layer -> value of one column of the table."""
        return {
            cell.layer: cell.value
            for cell in self.cells
            if cell.criterion == criterion and cell.module == module
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningOutcome:
    """Slot of *prune*: the plan that was carried out and what it left."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    spec: PruningSpec
    plan: PruningPlan
    layout: ModelLayout
    """Layout of the pruned model."""
    parameters_before: int
    parameters_after: int
    before: Metrics
    """The dense 16-bit model."""
    after: Metrics
    """The pruned 16-bit model."""
    samples: tuple[tuple[str, str, str], ...] = ()
    """Prompt, continuation of the dense model, continuation of the pruned model."""
    warnings: tuple[str, ...] = ()
    """Sentences for the person, such as a width multiple that could not be met."""
    biases: str = ""
    """Artifact (npz) with the values of the plan's added biases: Linear name (before pruning) ->
    float32 (out_features,); empty when the plan adds none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedPruning:
    """One criterion at the chosen ratio: what was left, measured."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    criterion: str
    """Catalogue name."""
    compensation: str
    """As in ``PruningSpec.compensation``."""
    parameters: int
    """Parameters left."""
    metrics: Metrics
    """The pruned 16-bit model."""
    seconds: float
    """Wall time of selection, surgery and compensation, and of scoring anew in all rounds but the
    first. What criteria share is apart: first scores, Block Influence, and loading the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All scored criteria at one ratio, each pruned from the dense model and measured."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    spec: PruningSpec
    """Ratio, scope and shape that all share; its criterion and compensation are those of no row in
    particular."""
    dense: Metrics
    """The model before pruning, on the same text and items."""
    rows: tuple[ComparedPruning, ...]
    """In the order in which they were measured."""

    def is_of(self, spec: PruningSpec) -> bool:
        """Whether a spec asks for what the rows share; criterion and compensation are theirs."""
        same = replace(self.spec, criterion=spec.criterion, compensation=spec.compensation)
        return same == spec


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityCell:
    """Loss with only one unit of the search space at a precision, minus the loss at 16 bit."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    unit: str
    """Name of the search unit, such as ``layer.3`` or ``layer.3.mlp`` (see ``search.space``)."""
    precision: str
    loss_increase: float
    """Nats per token; may be negative within noise."""
    kl: float | None = None
    """Mean Kullback-Leibler divergence of the predictions from those of the pruned 16-bit model;
    nats per token, >= 0. None in records from before it was measured.
    """
    level: int = 0
    """Index of the pruning ratio the unit has, of a joint search; the reference is the model as
    the run pruned it, level 0.
    """
    seconds: float | None = None
    """Time of the unit's Linears for one generated token, measured on their own; None where
    latency was not asked for.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationOutcome:
    """Slot of *quantize*: the bank was built and every unit's sensitivity measured."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    tie: str
    """Granularity of the units, as in ``SearchSpec.tie``."""
    precisions: tuple[str, ...]
    sensitivities: tuple[SensitivityCell, ...]
    loss_16_bit: float
    """Loss of the pruned 16-bit model on the tokens of the sensitivities; nats per token."""
    mutual_information: tuple[float, ...]
    """The layer signal named by `information` for the pruned model, by default I(X_l; Y); nats
    where it is an information, >= 0.
    """
    device: str
    levels: tuple[Level, ...] = ()
    """Of a joint search: the run's own pruning first, then one for every further ratio, ascending.
    Empty otherwise.
    """
    seconds_beside: float = 0.0
    """Time of everything but the Linears for one generated token; 0 where latency was not asked
    for.
    """
    information_stability: float | None = None
    """Mean Spearman correlation between the layer rankings that two random halves of the sampled
    positions give; in [-1, 1]. None where the signal draws no positions, with one layer, and in
    records from before it was measured.
    """
    information: str = "mutual_information"
    """Catalogue name of the layer signal that was measured, as in `SearchSpec.information`."""
    fixed: tuple[str, ...] = ()
    """Layers that no sensitivity was measured of, as the search gives them their precision by hand
    (`SearchSpec.fixed`).
    """
    weights: str = ""
    """Fingerprint of the weights that all of this was measured on; empty in records from before it
    was kept.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One measured plan."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    number: int
    """Position in the study, from 0; baselines count from -1 downwards, plans made by hand from
    `FIRST_BY_HAND` upwards.
    """
    name: str
    """Preset name of a baseline, such as ``QPruner-1``; empty for trials of the strategy."""
    plan: PrecisionPlan
    metrics: Metrics | None
    """None while running or when failed."""
    state: str = "complete"
    """``"running"``, ``"complete"``, ``"failed"``, or ``"stopped"``: dominated on a part of the
    text, see `SearchSpec.rungs`.
    """
    reason: str = ""
    """Why it failed or was stopped; empty otherwise."""
    worker: str = ""
    """Name of the worker that measures it or measured it; empty where that is not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOutcome:
    """Slot of *search*: what was measured and which plan is chosen."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    spec: SearchSpec
    budget_bytes: int
    """The memory budget resolved to bytes."""
    study_name: str
    """Name in the Optuna storage."""
    baselines: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    front: tuple[int, ...]
    """Numbers of the non-dominated among baselines and trials, by ascending cost (see
    `SearchSpec.cost`).
    """
    chosen: int
    """Number of the chosen plan: the best under the budget until a person picks another."""
    remarks: tuple[str, ...] = ()
    """Sentences for the person, such as that the evaluation text is too small to tell plans
    apart, or why the search ended early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOutcome:
    """Slot of *export*: the folder that was written and the proof that it reloads."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    spec: ExportSpec
    path: str
    """Folder; absolute."""
    size_bytes: int
    """Bytes of all weight files on disk."""
    planned_bytes: int
    """Bytes implied by the plan's formats."""
    reload_logits_equal: bool
    """Whether a fresh process opened it with stock transformers and gave the same logits, bit for
    bit.
    """
    max_logit_difference: float
    """Largest absolute difference seen in that check."""
    files: Mapping[str, str]
    """Path inside the folder -> SHA-256."""
    merge_error: float | None = None
    """Of a merged adapter: how far its merge moved the logits of the probe, |difference| over
    |logits| in Frobenius norms; None where none was merged.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """All slots of one run; an empty slot is a step that has not finished."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    run_id: str
    created_at: str
    """ISO 8601, UTC."""
    spec: RunSpec
    load: ModelCard | None = None
    score: ImportanceOutcome | None = None
    prune: PruningOutcome | None = None
    quantize: QuantizationOutcome | None = None
    evaluate: Metrics | None = None
    """The pruned 16-bit model, in full: all tasks, tokens per second."""
    search: SearchOutcome | None = None
    recover: RecoveryOutcome | None = None
    export: ExportOutcome | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time per finished step; seconds."""
    comparison: Comparison | None = None
    """Criteria measured side by side beside the line; emptied when the model is scored again."""
    compressed: CompressionOutcome | None = None
    """The model pruned and written layer by layer, beside the line."""
    reproduction: Reproduction | None = None
    """The paper's table on this run's model, beside the line."""
    harness: tuple[HarnessOutcome, ...] = ()
    """What lm-evaluation-harness said of the pruned model and of plans, beside the line, in the
    order of asking."""

    @property
    def next_step(self) -> str | None:
        """The first empty slot, None when the line is complete."""
        return next((step for step in STEPS if getattr(self, step) is None), None)

    def missing_before(self, goal: str) -> tuple[str, ...]:
        """Return the empty slots that have to be filled before a step can run, in line order.

        What *evaluate* measures is read by no other step, so that a search that was finished
        without it is not made again for it.
        """
        empty = [step for step in STEPS[: STEPS.index(goal)] if getattr(self, step) is None]
        if self.search is not None and "evaluate" in empty:
            empty.remove("evaluate")
        return tuple(empty)

    def steps_to(self, goal: str, *redo: str) -> tuple[str, ...]:
        """Return the steps to run so that one is done anew, in line order.

        Args:
            goal: The last step to run.
            redo: Earlier steps whose results no longer fit what is asked for.
        """
        last = STEPS.index(goal)
        again = [STEPS.index(step) for step in (*self.missing_before(goal), *redo)]
        return STEPS[min([*again, last]) : last + 1]

    @property
    def study_name(self) -> str:
        """Name of the study in Optuna's storage: the run, and a fingerprint of what is asked.

        The fingerprint covers model, data, pruning plan and search except its number of trials, so
        that asking for more trials goes on with the measured ones and any other change starts
        anew.
        """
        search = self.spec.search
        budget: str | int = search.memory_budget
        if self.load is not None:
            budget = parse_budget(search.memory_budget, dense_bytes(self.load.layout))
        asked = {
            "model": asdict(self.spec.model),
            "data": self.spec.data.asked(),
            "search": self._asked_search(search),
            "budget": budget,
            "kept": self._cut(),
        }
        if search.cost == "training_memory":
            asked["load"] = self.spec.recovery.memory
        if search.recover_steps:
            asked["recovery"] = self.spec.recovery_in_trials()
        text = json.dumps(asked, sort_keys=True, default=list)
        return f"{self.run_id}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @staticmethod
    def _asked_search(search: SearchSpec) -> dict[str, object]:
        """Return what of a search makes two studies differ. How long it goes on does not, and what
        older records did not know has a say only where it is not as usual.
        """
        usual = asdict(SearchSpec())
        asked = asdict(replace(search, n_trials=1, memory_budget="", patience=0))
        later = (
            "cost",
            "signal",
            "signal_tokens",
            "information",
            "patience",
            "rungs",
            "joint",
            "ratios",
            "recover_steps",
            "fixed",
        )
        return {k: v for k, v in asked.items() if k not in later or v != usual[k]}

    def _cut(self) -> object:
        """What the study's fingerprint says of pruning; as in older records where nothing else
        was done than removing units.
        """
        if self.prune is None:
            return None
        plan = self.prune.plan
        levels = self.quantize.levels if self.quantize is not None else ()
        if levels and self.spec.search.joint != "none":
            return [dict(level.plan.kept) for level in levels]
        if not (plan.dropped_layers or plan.biases):
            return dict(plan.kept)
        return {**asdict(plan), "values": self.prune.biases}

    @property
    def baselines_name(self) -> str:
        """Name of the stored value with the baselines that were measured for the study so far."""
        return f"baselines-{self.study_name}"

    @property
    def by_hand_name(self) -> str:
        """Name of the stored value with the plans that a person had measured beside the study."""
        return f"by-hand-{self.study_name}"

    @property
    def layout(self) -> ModelLayout | None:
        """Layout of the model as far as it has come: pruned, else dense, else unknown."""
        if self.prune is not None:
            return self.prune.layout
        return self.load.layout if self.load is not None else None

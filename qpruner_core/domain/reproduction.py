"""The paper's table on any model: what is asked, and the rows as they are measured.

Source of the rows: QPruner (arXiv:2412.11629), its tables of accuracy and memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from qpruner_core.domain.checks import require
from qpruner_core.domain.metrics import Metrics
from qpruner_core.domain.plan import PrecisionPlan
from qpruner_core.domain.recovered import RecoveryOutcome
from qpruner_core.domain.recovery import PRESETS, RecoverySpec

STRICT = {"extra": "forbid"}
SETTINGS = ("paper", "script", "ours")
VARIANTS = ("LLM-Pruner (16 bit)", "QPruner-1", "QPruner-2", "QPruner-3")
"""Rows at every ratio, in the order of the paper's table; the names of `search.presets`."""
SMALL_MODEL_BYTES = 100 * 10**6
"""Dense 16-bit bytes below which a model is trained with `SMALL_RECOVERY`."""
SMALL_RECOVERY = RecoverySpec(
    steps=120,
    rank=4,
    alpha=8.0,
    dropout=0.05,
    learning_rate=1e-3,
    batch_size=8,
    micro_batch_size=1,
    sequence_length=64,
    gradient_checkpointing=True,
    optimizer="adamw_8bit",
    initialization="loftq",
)
"""The paper's settings scaled down for models such as the demo: the scaling alpha / rank of 2 and
the dropout are the paper's, and micro-batches, checkpointing and 8-bit moments keep the training
memory mostly weights, as it is for a large model."""
STARTUP, STARTUP_SHARE = 10, 5
"""The first plans that the Gaussian process does not choose are the paper's, and of few plans one
in so many."""
TRIAL_SHARE = 20
"""In the setting ``paper`` a trial is recovered for one in so many of a row's steps."""


def ratio_key(ratio: float) -> str:
    """Return a pruning ratio as the text by which `Reproduction` names it."""
    return f"{ratio:g}"


def ratio_words(ratio: float) -> str:
    """Return a pruning ratio as a person reads it."""
    return f"{100.0 * ratio:g} %"


def of_ratio(ratio: float, words: str) -> str:
    """Return a remark as one of a ratio."""
    return f"At {ratio_words(ratio)}{words}"


def is_of_ratio(remark: str, ratio: float) -> bool:
    """Whether a remark is one of a ratio."""
    return remark.startswith(of_ratio(ratio, ""))


def usual_recovery(dense_bytes: int) -> RecoverySpec:
    """Return how rows are recovered unless a person says otherwise.

    Args:
        dense_bytes: The model at 16 bit; bytes.
    """
    if dense_bytes < SMALL_MODEL_BYTES:
        return SMALL_RECOVERY
    # All Linears of the decoder layers: those seven of a Llama, whatever they are called.
    return replace(PRESETS["paper"], initialization="loftq", targets=())


def usual_recover_steps(setting: str, recovery: RecoverySpec) -> int:
    """Return how long each trial is recovered unless a person says otherwise: in the paper's
    setting a twentieth of a row's steps, at least one, and not at all in the other two.
    """
    if setting != "paper" or recovery.steps == 0:
        return 0
    return max(1, recovery.steps // TRIAL_SHARE)


def usual_startup(n_trials: int) -> int:
    """Return how many plans the Gaussian process does not choose unless a person says otherwise.

    Args:
        n_trials: Plans at every ratio; >= 1.
    """
    return min(STARTUP, n_trials // STARTUP_SHARE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproductionSpec:
    """What the table is made of."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    setting: str = "paper"
    """``"paper"``: as abstract and section names say: Taylor pruning, {nf4, int8} per layer by
    mutual information, refined by a Gaussian process whose every trial is recovered for a while.
    ``"script"``: as the public post-training script does it: first and last layers stay at 16 bit,
    and 8-bit layers hold 16-bit weights in memory. ``"ours"``: this product's defaults."""
    ratios: tuple[float, ...] = (0.2, 0.3, 0.5)
    """Pruning ratios, ascending; each in [0, 1)."""
    recovery: RecoverySpec = field(default_factory=RecoverySpec)
    """How every row is recovered."""
    n_trials: int = 50
    """Plans that refine QPruner-2 at every ratio, beside the baselines; >= 1."""
    n_startup: int = STARTUP
    """Of these, the first ones that the Gaussian process does not choose; >= 0 and below
    ``n_trials``, see `check_startup`. The setting ``"ours"`` has no such first ones."""
    recover_steps: int = 0
    """Steps of recovery in each trial; 0 measures plans as they are quantised."""
    int8_share: float = 0.25
    """Share of the layers' 8-bit bytes beyond 4 bit that the memory budget of QPruner-2 and
    QPruner-3 pays for; in [0, 1]."""
    items_per_task: int = 0
    """Items per task that a row is judged by; 0 for all."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        require(
            self.setting in SETTINGS,
            f"The setting of the table is {self.setting!r}",
            f"Choose one of {', '.join(SETTINGS)}.",
        )
        ascending = all(a < b for a, b in zip(self.ratios, self.ratios[1:], strict=False))
        require(
            bool(self.ratios) and ascending and all(0.0 <= ratio < 1.0 for ratio in self.ratios),
            f"The pruning ratios of the table are {', '.join(map(str, self.ratios)) or 'none'}",
            "Give one or more shares in [0, 1), ascending, each once.",
        )
        require(self.n_trials >= 1, f"n_trials is {self.n_trials}", "Give 1 or more.")
        for name in ("n_startup", "recover_steps", "items_per_task"):
            value = getattr(self, name)
            require(value >= 0, f"{name} is {value}", "Give 0 or more.")
        require(
            0.0 <= self.int8_share <= 1.0,
            f"The share of 8-bit layers is {self.int8_share}",
            "It is a share in [0, 1]; choose one in that range.",
        )

    @property
    def has_startup(self) -> bool:
        """Whether the search of the setting has first plans that no model of it chooses."""
        return self.setting != "ours"

    def check_startup(self) -> None:
        """Refuse a table whose Gaussian process would never choose a plan.

        Tables from before this was refused are read, and gone on with, all the same.

        Raises:
            BadInputError: All plans would be first ones.
        """
        require(
            not self.has_startup or self.n_startup < self.n_trials,
            f"Of {self.n_trials} trials the first {self.n_startup} (startup) are not chosen by "
            f"the Gaussian process, so that it would choose none",
            "Give fewer by --startup, or more by --trials.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproductionRow:
    """One line of the table, measured."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    ratio: float
    """Pruning ratio."""
    variant: str
    """One of `VARIANTS`."""
    run_id: str
    """The run that pruned and searched at this ratio."""
    trial: int
    """Number of the plan there."""
    plan: PrecisionPlan
    recovery: RecoveryOutcome
    """Before and after; ``after.weight_bytes`` is what inference holds, the adapter included."""
    weight_bytes: int
    """Packed weights without the adapter; bytes."""
    seconds: float
    """Wall time of the row: training and both measurements; its search is the ratio's."""
    pruning: str = ""
    """Fingerprint of what its run had pruned; empty in records from before it was kept."""
    counts_temporaries: bool = False
    """Whether training memory measured on the CPU counts temporary tensors; older records do
    not."""

    @property
    def training_bytes(self) -> int | None:
        """Measured training memory; None where nothing was trained."""
        return self.recovery.peak_memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """The table as far as it has come."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    spec: ReproductionSpec
    rows: tuple[ReproductionRow, ...] = ()
    """By ratio, then in the order of `VARIANTS`."""
    dense: Metrics | None = None
    """The model before pruning, on the items of the rows; None until measured."""
    runs: Mapping[str, str] = field(default_factory=dict)
    """Pruning ratio, as text -> id of the run that prunes and searches there."""
    search_seconds: Mapping[str, float] = field(default_factory=dict)
    """Pruning ratio, as text -> wall time of everything before its rows."""
    remarks: tuple[str, ...] = ()
    """Sentences for the person."""
    model: str = ""
    """What the model is called; empty until the table is begun."""
    begun_at: str = ""
    """ISO 8601, UTC; empty until the table is begun."""
    version: str = ""
    """Version of QPruner Studio that began it."""
    evaluated: str = ""
    """Fingerprint of the person's own files that plans and rows are measured on, as they were when
    it was begun; empty where there are none and in records from before it was kept."""

    @property
    def n_rows(self) -> int:
        """Rows of the finished table."""
        return len(self.spec.ratios) * len(VARIANTS)

    @property
    def is_complete(self) -> bool:
        """Whether every row is measured."""
        return len(self.rows) >= self.n_rows

    @property
    def missing(self) -> tuple[tuple[float, str], ...]:
        """Ratio and variant of every row that is not measured yet, in the order of the table."""
        wanted = ((ratio, name) for ratio in self.spec.ratios for name in VARIANTS)
        return tuple(pair for pair in wanted if self.row(*pair) is None)

    def differs_in_ratios_only(self, spec: ReproductionSpec) -> bool:
        """Whether what is asked for is this table but for its ratios: rows of those that stay are
        then true of it too.
        """
        return replace(self.spec, ratios=spec.ratios) == spec

    def with_ratios(self, ratios: tuple[float, ...]) -> Reproduction:
        """Return the table with other ratios and all that is known of those that stay."""
        gone = [ratio for ratio in self.spec.ratios if ratio not in ratios]
        kept = self
        for ratio in gone:
            kept = kept.without(ratio)
        return replace(kept, spec=replace(self.spec, ratios=ratios))

    def without(self, ratio: float) -> Reproduction:
        """Return the table without rows, run, search and remarks of a ratio."""
        key = ratio_key(ratio)
        return replace(
            self,
            rows=tuple(row for row in self.rows if row.ratio != ratio),
            runs={name: run for name, run in self.runs.items() if name != key},
            search_seconds={k: v for k, v in self.search_seconds.items() if k != key},
            remarks=tuple(each for each in self.remarks if not is_of_ratio(each, ratio)),
        )

    def with_row(self, row: ReproductionRow) -> Reproduction:
        """Return the table with one row more, in its place."""
        rows = sorted((*self.rows, row), key=lambda each: (each.ratio, _place(each.variant)))
        return replace(self, rows=tuple(rows))

    def row(self, ratio: float, variant: str) -> ReproductionRow | None:
        """Return a row; None while it is missing."""
        for found in self.rows:
            if found.ratio == ratio and found.variant == variant:
                return found
        return None


def _place(variant: str) -> int:
    return VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS)

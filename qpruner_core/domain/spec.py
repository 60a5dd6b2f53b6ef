"""What a person asks for: one value per step of the line, complete and checked before anything is
computed.

Names of catalogue entries are checked where the catalogue is known
(`qpruner_core.catalog.check_spec`), ranges here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from qpruner_core.domain.checks import is_index, require
from qpruner_core.domain.layout import KINDS
from qpruner_core.domain.recovery import RecoverySpec

STRICT = {"extra": "forbid"}
SHAPES = ("per-layer", "uniform")
SCOPES = ("per-layer", "global", "balanced", "standardised")
COMPENSATIONS = ("none", "bias")
TIES = ("layer", "block", "fused", "linear")
OBJECTIVES = ("loss", "accuracy")
COSTS = ("weight_bytes", "training_memory", "latency")
SIGNALS = ("loss", "kl")
JOINTS = ("none", "global", "per-layer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Which model, and how far its repository is trusted."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    source: str
    """``"demo"``, the path of a local Hugging Face folder, or a hub id such as ``org/name``."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None for the main branch; ignored for local folders."""
    trust_remote_code: bool = False
    """Run Python files that come with the model; only when the person ticks it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Which text and tasks; the three texts are kept apart."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    calibration: str = "demo"
    """Text that criteria and signals see: ``"demo"``, ``"wikitext2"`` (hub) or the path of a UTF-8
    file.
    """
    training: str = "demo"
    """Text that recovery trains on; same values."""
    heldout: str = "demo"
    """Text that evaluation sees; same values."""
    tasks: str = "demo"
    """Multiple-choice items: ``"demo"``, ``"none"``, or the path of a folder of ``*.jsonl``
    files.
    """
    sequence_length: int = 128
    """Tokens per sequence; >= 8."""
    calibration_tokens: int = 8192
    """Tokens of calibration text; >= one sequence."""
    heldout_tokens: int = 12288
    """Tokens of held-out text per evaluation; >= one sequence."""
    items_per_task: int = 40
    """Items per task and evaluation; 0 for all."""
    task_names: tuple[str, ...] = ()
    """Tasks of that source that are scored; empty for all."""

    def __post_init__(self) -> None:
        require(
            self.sequence_length >= 8,
            f"The sequence length is {self.sequence_length} tokens",
            "At least 8 are needed; choose a longer sequence.",
        )
        for name in ("calibration_tokens", "heldout_tokens"):
            require(
                getattr(self, name) >= self.sequence_length,
                f"{name} is {getattr(self, name)}, less than one sequence "
                f"of {self.sequence_length}",
                "Raise it to at least one sequence.",
            )
        require(
            self.items_per_task >= 0,
            f"items_per_task is {self.items_per_task}",
            "Give a positive number, or 0 for all items.",
        )

    def asked(self) -> dict[str, object]:
        """Return what makes two data differ: all fields, but what older records did not know only
        where it is not as usual.
        """
        known = asdict(self)
        if not self.task_names:
            del known["task_names"]
        return known


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceSpec:
    """Which criteria score the units and layers."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    criteria: tuple[str, ...] = (
        "taylor",
        "wanda",
        "flap",
        "magnitude",
        "random",
        "mutual_information",
        "block_influence",
    )
    """Catalogue names, unit criteria and layer signals alike; at least one."""
    options: Mapping[str, Mapping[str, bool | int | float | str]] = field(default_factory=dict)
    """Criterion name -> its options."""
    seed: int = 0
    """Seed of everything random in scoring."""

    def __post_init__(self) -> None:
        require(bool(self.criteria), "No importance criterion is chosen", "Choose at least one.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningSpec:
    """How many units leave, and by which rule."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    ratio: float = 0.2
    """Share of the parameters of the decoder layers that leaves, protected layers counted in the
    whole; in [0, 1)."""
    criterion: str = "flap"
    """Catalogue name of a unit criterion."""
    scope: str = "balanced"
    """``"per-layer"``: every layer loses the same share; ``"global"``: the least important of all
    layers; ``"balanced"``: the same, each score over the mean of its layer and kind;
    ``"standardised"``: each score as (s - mean) / std of its layer and kind, as FLAP ranks.
    """
    shape: str = "per-layer"
    """``"per-layer"`` widths (best quality) or ``"uniform"`` widths (opens everywhere)."""
    kinds: tuple[str, ...] = ("kv_heads", "mlp_channels", "expert_channels")
    """Kinds of unit that may leave (`layout.KINDS`); kinds a model does not have are ignored."""
    layer_ratios: Mapping[str, float] = field(default_factory=dict)
    """Ratios given by hand: index of a layer, as text -> share of its parameters that leaves, in
    [0, 1). The other layers share what is left to reach ``ratio``."""
    drop_layers: int = 0
    """Whole layers that leave, those of least Block Influence; they count towards ``ratio``; >=
    0."""
    iterations: int = 1
    """Rounds of scoring and pruning: each removes an equal part of what is to leave and scores
    what is left anew; >= 1."""
    compensation: str = "none"
    """``"none"``, or ``"bias"``: what the removed units gave on average over the calibration text
    goes into a bias of the projection they entered (FLAP, arXiv:2312.11983)."""
    protect_first: int | None = None
    """First layers that lose nothing; None for 4 on models of 20 layers or more, scaled down
    below.
    """
    protect_last: int | None = None
    """Last layers that lose nothing; None for 2, scaled down likewise."""
    width_multiple: int = 64
    """Kept MLP channels are a multiple of this where the ratio allows; >= 1."""

    def __post_init__(self) -> None:
        require(
            0.0 <= self.ratio < 1.0,
            f"The pruning ratio is {self.ratio}",
            "It is a share of the layers' parameters in [0, 1); choose one in that range.",
        )
        choices = (("scope", SCOPES), ("shape", SHAPES), ("compensation", COMPENSATIONS))
        for name, known in choices:
            require(
                getattr(self, name) in known,
                f"The pruning {name} is {getattr(self, name)!r}",
                f"Choose one of {', '.join(known)}.",
            )
        for name in ("protect_first", "protect_last"):
            value = getattr(self, name)
            require(
                value is None or value >= 0,
                f"{name} is {value}",
                "Give a number of layers, 0 or more.",
            )
        for name, words in (("width_multiple", "width multiple"), ("iterations", "iterations")):
            require(
                getattr(self, name) >= 1,
                f"The number for {words} is {getattr(self, name)}",
                "Give a whole number, 1 or more.",
            )
        require(
            self.drop_layers >= 0,
            f"The number of layers to drop is {self.drop_layers}",
            "Give a whole number, 0 or more.",
        )
        self._check_kinds()
        self._check_layer_ratios()

    def _check_kinds(self) -> None:
        unknown = sorted(set(self.kinds) - set(KINDS))
        require(
            not unknown,
            f"There is no kind of unit named {', '.join(map(repr, unknown))}",
            f"Choose among {', '.join(KINDS)}.",
        )
        require(
            bool(self.kinds) or self.drop_layers > 0 or self.ratio == 0.0,
            "No kind of unit may leave",
            f"Choose at least one of {', '.join(KINDS)}, or drop whole layers.",
        )

    def _check_layer_ratios(self) -> None:
        for layer, ratio in self.layer_ratios.items():
            require(
                is_index(layer) and 0.0 <= ratio < 1.0,
                f"A ratio by hand of {ratio} for layer {layer!r}",
                "Give the index of a layer, from 0, and a share in [0, 1).",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpec:
    """Which precision plans may be tried, how they are found and what limits them."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    memory_budget: str = "0.45"
    """Fraction of the dense 16-bit bytes in (0, 1], or bytes with a unit such as ``"6 GiB"``."""
    precisions: tuple[str, ...] = ("nf4", "int8", "bf16")
    """Catalogue names a Linear may get; at least one."""
    tie: str = "layer"
    """What shares one precision: ``"layer"``, ``"block"`` (attention, MLP), ``"fused"`` (q/k/v and
    gate/up, as
    serving kernels need it), or ``"linear"`` (nothing)."""
    objective: str = "loss"
    """What is weighed against the cost: ``"loss"`` or ``"accuracy"``."""
    cost: str = "weight_bytes"
    """The cost: ``"weight_bytes"`` (packed), ``"training_memory"`` (estimated bytes of LoRA
    training as the recovery is asked for) or ``"latency"`` (measured seconds per generated
    token). The memory budget bounds the weight bytes in all three.
    """
    signal: str = "kl"
    """Which sensitivities the predicted front adds up: ``"loss"`` or ``"kl"`` (divergence from the
    16-bit model's predictions).
    """
    information: str = "mutual_information"
    """Catalogue name of the layer signal by which QPruner-2 spends its budget; its options are
    those of the importance spec.
    """
    strategy: str = "refit"
    """Catalogue name."""
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """Options of the strategy."""
    n_trials: int = 24
    """Plans to measure besides the baselines; >= 1."""
    signal_tokens: int = 0
    """Calibration tokens that sensitivities are measured on; 0 for as many as the signal needs:
    2,048 for the divergence, whose ranking of layers hardly changes beyond, and all for the loss.
    """
    patience: int = 0
    """Stop when that many trials in a row have not moved the measured front; 0 for never."""
    rungs: int = 1
    """Successive halving on the evaluation text: a plan is measured on 1 / 2^(rungs - 1) of it
    first, and on twice as much in every rung after, unless a paired comparison on the same text
    says that it is dominated. 1 measures every plan on all of it.
    """
    joint: str = "none"
    """Pruning ratio and precision in one search: ``"none"``, ``"global"`` (one ratio for the
    model) or ``"per-layer"`` (every layer its own; ties by layer only).
    """
    ratios: tuple[float, ...] = ()
    """Pruning ratios of a joint search besides that of the run, ascending; each in [0, 1)."""
    recover_steps: int = 0
    """Optimiser steps of LoRA training, otherwise as the run's recovery is asked for, on every
    plan before it is measured, baselines included; 0 measures plans as they are quantised. Their
    bytes stay those of the packed weights: an adapter has the same size beside every plan.
    """
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Layers whose precision is given by hand: index of a layer, as text -> catalogue name. The
    search chooses for the others; of the baselines only that at 16 bit does not hold it."""
    seed: int = 0
    """Seed of the strategy."""

    def __post_init__(self) -> None:
        require(bool(self.precisions), "No precision is chosen", "Choose at least one.")
        require(
            len(set(self.precisions)) == len(self.precisions),
            f"The precisions {', '.join(self.precisions)} name one twice",
            "Name each once.",
        )
        require(self.n_trials >= 1, f"The number of trials is {self.n_trials}", "Give at least 1.")
        choices = (
            ("tie", TIES),
            ("objective", OBJECTIVES),
            ("cost", COSTS),
            ("signal", SIGNALS),
            ("joint", JOINTS),
        )
        for name, known in choices:
            require(
                getattr(self, name) in known,
                f"The search {name} is {getattr(self, name)!r}",
                f"Choose one of {', '.join(known)}.",
            )
        require(
            self.signal_tokens >= 0,
            f"The number of tokens for sensitivities is {self.signal_tokens}",
            "Give a positive number, or 0 for as many as the signal needs.",
        )
        require(self.patience >= 0, f"The patience is {self.patience}", "Give 0 or more trials.")
        require(
            1 <= self.rungs <= 6,
            f"The number of rungs is {self.rungs}",
            "Give 1 to measure every plan on all text, at most 6.",
        )
        require(
            self.rungs == 1 or self.objective == "loss",
            f"A search for {self.objective} was asked for in {self.rungs} rungs, but rungs "
            f"compare losses on a part of the text, which say nothing of the answers to tasks",
            "Search for the loss, or measure every plan in full with 1 rung.",
        )
        require(
            self.recover_steps >= 0,
            f"The number of recovery steps in each trial is {self.recover_steps}",
            "Give 0 or more.",
        )
        require(
            not (self.recover_steps and self.rungs > 1),
            f"Recovery of {self.recover_steps} steps in each trial was asked for in {self.rungs} "
            f"rungs, but training is what takes the time, and a rung would only save evaluation",
            "Measure every plan in full with 1 rung, or leave recovery for after the search.",
        )
        self._check_fixed()
        self._check_joint()

    def _check_fixed(self) -> None:
        for layer, precision in self.fixed.items():
            require(
                is_index(layer) and bool(precision),
                f"A precision by hand of {precision!r} for layer {layer!r}",
                "Give the index of a layer, from 0, and the name of a precision.",
            )
        require(
            not self.fixed or (self.joint == "none" and self.cost == "weight_bytes"),
            f"{len(self.fixed)} layers have a precision by hand in a search that is joint "
            f"({self.joint}) or weighs {self.cost.replace('_', ' ')}",
            "Search precisions alone by packed bytes, or leave the precisions to the search.",
        )

    def _check_joint(self) -> None:
        ascending = all(a < b for a, b in zip(self.ratios, self.ratios[1:], strict=False))
        require(
            ascending and all(0.0 <= ratio < 1.0 for ratio in self.ratios),
            f"The pruning ratios of the joint search are {', '.join(map(str, self.ratios))}",
            "Give shares in [0, 1), ascending, each once.",
        )
        require(
            (self.joint == "none") == (not self.ratios),
            f"The search has joint {self.joint!r} and {len(self.ratios)} pruning ratios beside "
            f"that of the run",
            "A joint search needs one or more such ratios (--joint-ratios), any other needs none.",
        )
        require(
            self.joint != "per-layer" or self.tie == "layer",
            f"A pruning ratio per layer was asked for with ties by {self.tie}",
            "Tie by layer, or choose one ratio for the model.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSpec:
    """Which format, and where."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    format: str = "hf_mixed"
    """Catalogue name: ``hf_mixed`` (packed, mixed bitsandbytes) or ``hf_16bit``."""
    out: str | None = None
    """Folder to create; None for a folder of the run's artifacts. It must not exist yet."""
    trial: int | None = None
    """Number of the measured plan to write; None for the chosen one."""
    include_adapter: bool = True
    """Put the recovery adapter in a subfolder beside the weights, when there is one."""
    merge_adapter: bool = False
    """Add the adapter to the weights instead and write them in the format; the logits are compared
    with those of weights and adapter apart.
    """
    merge_tolerance: float = 0.02
    """Largest relative error of the logits, |difference| over |logits| in Frobenius norms, that a
    merge may cause; > 0. A merge beyond it is refused."""

    def __post_init__(self) -> None:
        require(
            self.merge_tolerance > 0.0,
            f"A merge was allowed to change the logits by {self.merge_tolerance} of their norm",
            "Give a share above 0.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Everything one pass down the line is asked to do."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    model: ModelSpec
    data: DataSpec = field(default_factory=DataSpec)
    importance: ImportanceSpec = field(default_factory=ImportanceSpec)
    pruning: PruningSpec = field(default_factory=PruningSpec)
    search: SearchSpec = field(default_factory=SearchSpec)
    recovery: RecoverySpec = field(default_factory=RecoverySpec)
    export: ExportSpec = field(default_factory=ExportSpec)
    name: str = ""
    """What the person calls the run; may be empty."""

    def recovery_in_trials(self) -> dict[str, object]:
        """Return what of the recovery has a say in what a trial measures, where trials recover.

        A file that the run was given is called alike in every copy of the run.
        """
        asked = {**asdict(self.recovery), "training": self.recovery.training_name}
        for name in ("trial", "steps", "checkpoint_steps"):
            del asked[name]
        return {**asked, "steps": self.search.recover_steps}

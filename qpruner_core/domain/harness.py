"""What lm-evaluation-harness says of a model, by its own definitions of its tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qpruner_core.domain.checks import require

STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessSpec:
    """What the harness is asked."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    tasks: tuple[str, ...]
    """Names of tasks or groups of the harness; at least one."""
    limit: int = 0
    """The first so many items of every task; 0 for all."""
    n_shots: int | None = None
    """Solved examples before every item; None for what a task states, mostly none."""
    include_path: str = ""
    """Folder with task definitions of the person's own; empty for none."""

    def __post_init__(self) -> None:
        require(
            bool(self.tasks),
            "No task of the harness was named",
            "Name one or more, such as boolq,piqa.",
        )
        for name in ("limit", "n_shots"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{name} is {value}", "Give 0 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessScore:
    """One number of a task."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    metric: str
    """The harness's name, such as ``acc``, ``acc_norm`` or ``word_perplexity``."""
    value: float
    standard_error: float | None
    """As the harness computes it; None where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessTask:
    """One task, or a group of them."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    name: str
    version: str
    """Of the task's definition; empty where it states none."""
    n_items: int
    """Items scored."""
    scores: tuple[HarnessScore, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessOutcome:
    """One call of the harness on a model of the run."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    spec: HarnessSpec
    trial: int | None
    """Number of the plan; None: the pruned 16-bit model."""
    with_adapter: bool
    """Whether the plan's recovery adapter stood beside its weights."""
    tasks: tuple[HarnessTask, ...]
    harness_version: str
    device: str
    """Where it was measured."""
    created_at: str
    """ISO 8601, UTC."""
    seconds: float
    """Wall time."""
    row: str = ""
    """Variant of the row of the paper's table whose adapter stood beside the plan; empty for a
    plan of the line."""


def still_true(
    outcomes: tuple[HarnessOutcome, ...], first_step: str, steps: tuple[str, ...]
) -> tuple[HarnessOutcome, ...]:
    """Return what is left of the outcomes when a run is done again from a step on: those of the
    pruned model hang on *prune*, those of plans on *search*, those with an adapter on *recover*
    where it is the run's own.

    Args:
        outcomes: All that the run has.
        first_step: The first step that is done again.
        steps: All steps in their order.
    """

    def hangs_on(outcome: HarnessOutcome) -> str:
        if outcome.trial is None:
            return "prune"
        return "recover" if outcome.with_adapter and not outcome.row else "search"

    first = steps.index(first_step)
    return tuple(each for each in outcomes if steps.index(hangs_on(each)) < first)

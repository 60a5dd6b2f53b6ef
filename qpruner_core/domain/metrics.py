"""What a candidate costs and how well it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, isfinite, sqrt
from typing import ClassVar

from qpruner_core.domain.speed import Speed
from qpruner_core.errors import NonFiniteLossError

STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """Accuracy on one multiple-choice task."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    n_items: int
    """Items scored; >= 1."""
    accuracy: float
    """Share of items whose gold choice has the largest summed log-likelihood,
    lm-evaluation-harness's ``acc``; in [0, 1]. Every accuracy that is compared is this one."""
    accuracy_normalized: float
    """The same by log-likelihood per character of the choice, lm-evaluation-harness's
    ``acc_norm``; in [0, 1]."""
    correct: tuple[bool, ...] = ()
    """Item by item, in the order of `items`, by ``acc``; empty when not kept."""
    items: str = ""
    """Short hash of the items as the model read them: contexts, choices and right choices as token
    ids, in their order. Equal for equal items alone; empty in older records."""

    @property
    def standard_error(self) -> float:
        """Binomial standard error of the accuracy, sample variance (n - 1); in [0, 0.5]."""
        return _binomial(self.accuracy, self.n_items)

    @property
    def standard_error_normalized(self) -> float:
        """That of ``acc_norm``; in [0, 0.5]."""
        return _binomial(self.accuracy_normalized, self.n_items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What a candidate costs and how well it answers, all measured on one device."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    loss: float
    """Mean negative log-likelihood per token of held-out text; nats, >= 0, lower is better."""
    accuracy: float
    """Mean zero-shot ``acc`` over the tasks; in [0, 1], higher is better. 0 without tasks."""
    weight_bytes: int
    """Packed weights with their scales and tables, embeddings and norms included; bytes."""
    device: str
    """Where it was measured, such as ``cpu`` or the name of a CUDA card."""
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)
    """Task name -> result; empty when no tasks were scored."""
    prefill_tokens_per_second: float | None = None
    """Prompt tokens read per second, median; None when not timed."""
    decode_tokens_per_second: float | None = None
    """Tokens generated per second with the KV cache, median; None when not timed."""
    peak_memory_bytes: int | None = None
    """Peak device memory while evaluating; bytes; None where the device does not count it."""
    seconds: float = 0.0
    """Wall time of the measurement; seconds."""
    training_bytes: int | None = None
    """*Estimated* memory of LoRA training as the run's recovery is asked for; bytes. None where
    the search does not weigh it.
    """
    speed: Speed | None = None
    """The two speeds with their spread and what they were measured on; None when not timed and in
    older records.
    """
    measured_in: str = ""
    """Name of the study that a number of the same run was first measured in and taken over from;
    empty where it was measured.
    """

    def __post_init__(self) -> None:
        if not isfinite(self.loss):
            raise NonFiniteLossError(
                f"The evaluation gave a loss of {self.loss}; a finite number is needed. Give the "
                f"most sensitive layers a higher precision or lower the pruning ratio."
            )
        if not 0.0 <= self.accuracy <= 1.0:
            raise ValueError(f"accuracy is a fraction in [0, 1], got {self.accuracy}")

    @property
    def perplexity(self) -> float:
        """exp(loss); dimensionless, >= 1, lower is better; inf where it overflows."""
        return exp(self.loss) if self.loss < 700 else float("inf")

    @property
    def standard_error(self) -> float:
        """Standard error of the mean accuracy over independent tasks; 0 without tasks."""
        return _of_a_mean([result.standard_error for result in self.tasks.values()])

    @property
    def accuracy_normalized(self) -> float:
        """Mean ``acc_norm`` over the tasks; in [0, 1]. 0 without tasks."""
        values = [result.accuracy_normalized for result in self.tasks.values()]
        return sum(values) / max(1, len(values))

    @property
    def standard_error_normalized(self) -> float:
        """Standard error of the mean ``acc_norm``; 0 without tasks."""
        return _of_a_mean([result.standard_error_normalized for result in self.tasks.values()])


def _binomial(share: float, n_items: int) -> float:
    return 0.5 if n_items < 2 else sqrt(share * (1.0 - share) / (n_items - 1))


def _of_a_mean(errors: Sequence[float]) -> float:
    return sqrt(sum(error**2 for error in errors)) / max(1, len(errors))

"""Tokens per second, and on what they were measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qpruner_core.domain.checks import require

STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedSpec:
    """What is timed."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    batch: int = 1
    """Sequences at a time; >= 1."""
    context: int = 512
    """Tokens of the prompt; >= 1."""
    n_decoded: int = 32
    """Tokens that each sequence is continued by; >= 1."""
    n_repetitions: int = 5
    """Timed repetitions after one that warms up; >= 2, as a spread needs two."""

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("context", 1), ("n_decoded", 1), ("n_repetitions", 2)):
            require(
                getattr(self, name) >= least,
                f"The speed is asked for with {name} {getattr(self, name)}",
                f"Give a whole number, {least} or more.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Tokens per second of all sequences together, over the repetitions."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    median: float
    lower: float
    """First quartile."""
    upper: float
    """Third quartile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a model reads a prompt and writes behind it, the warm-up left out."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    spec: SpeedSpec
    prefill: Rate
    """Prompt tokens read per second."""
    decode: Rate
    """Tokens generated per second with the KV cache."""
    kv_cache_bytes: int | None = None
    """Keys and values of all sequences at the end of the prompt, in the dtype that the model
    computes in; bytes. None where they were not counted."""
    peak_memory_bytes: int | None = None
    """Peak device memory while reading and writing; bytes; None where the device does not count
    it."""

    @property
    def prefill_tokens_per_second(self) -> float:
        """The median."""
        return self.prefill.median

    @property
    def decode_tokens_per_second(self) -> float:
        """The median."""
        return self.decode.median

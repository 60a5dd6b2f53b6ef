"""Perplexity of a text of the person's own, and how it was read."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isfinite, log, sqrt
from typing import ClassVar

from qpruner_core.domain.checks import require
from qpruner_core.errors import NonFiniteLossError

STRICT = {"extra": "forbid"}
KINDS = ("blocks", "stride", "rolling")


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSpec:
    """How a text is cut into what the model reads at once (see ``evaluation.windows``)."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    kind: str = "blocks"
    """``"blocks"``, ``"stride"`` or ``"rolling"``."""
    length: int = 2048
    """Tokens that are read at once; >= 2."""
    stride: int = 0
    """Tokens from one window's beginning to the next, of kind ``"stride"``; in [1, length]. 0 of
    any other."""

    def __post_init__(self) -> None:
        require(
            self.kind in KINDS,
            f"The windows are of kind {self.kind!r}",
            f"Choose one of {', '.join(KINDS)}.",
        )
        require(
            self.length >= 2,
            f"The window has {self.length} tokens",
            "At least 2 are needed; choose a longer window.",
        )
        require(
            self.kind != "stride" or 1 <= self.stride <= self.length,
            f"The stride is {self.stride} tokens and the window {self.length}",
            "Give a stride from 1 to the length of the window.",
        )
        require(
            self.kind == "stride" or self.stride == 0,
            f"A stride of {self.stride} was given for windows of kind {self.kind!r}",
            "Leave the stride out, or read with one.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextResult:
    """What a model makes of a text."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    spec: WindowSpec
    n_tokens: int
    """Tokens of the text."""
    n_predicted: int
    """Tokens that count, each once; >= 1."""
    n_windows: int
    n_words: int
    """Words of the text, cut at white space."""
    n_bytes: int
    """UTF-8 bytes of the text."""
    nats: float
    """Summed negative log-likelihood of the tokens that count."""
    squares: float
    """Sum of the squares of those negative log-likelihoods; nats squared."""

    def __post_init__(self) -> None:
        if not isfinite(self.nats):
            raise NonFiniteLossError(
                f"The text gave a loss of {self.nats}; a finite number is needed. Give the most "
                f"sensitive layers a higher precision or lower the pruning ratio."
            )

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood per token that counts; nats."""
        return self.nats / self.n_predicted

    @property
    def perplexity(self) -> float:
        """exp(loss); dimensionless, lower is better; inf where it overflows."""
        return _exp(self.loss)

    @property
    def standard_error(self) -> float:
        """Standard error of the loss, tokens taken as independent (which they are not quite, so
        that it is rather too small); nats. 0 for one token.
        """
        n = self.n_predicted
        if n < 2:
            return 0.0
        variance = max(0.0, self.squares - self.nats**2 / n) / (n - 1)
        return sqrt(variance / n)

    @property
    def word_perplexity(self) -> float | None:
        """exp(nats / words), as lm-evaluation-harness has it; None where not every token counts,
        which leaves nothing to divide by words.
        """
        return self._per(self.n_words)

    @property
    def byte_perplexity(self) -> float | None:
        """exp(nats / bytes); None as for words."""
        return self._per(self.n_bytes)

    @property
    def bits_per_byte(self) -> float | None:
        """Nats / bytes / ln 2; None as for words."""
        return self.nats / self.n_bytes / log(2) if self._is_whole() else None

    def _per(self, count: int) -> float | None:
        return _exp(self.nats / count) if self._is_whole() and count else None

    def _is_whole(self) -> bool:
        return self.spec.kind == "rolling"


def _exp(value: float) -> float:
    return exp(value) if value < 700 else float("inf")

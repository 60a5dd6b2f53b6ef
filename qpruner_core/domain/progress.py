"""How a long step tells where it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One report of a step that is under way."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    step: str
    """The verb: load, score, prune, quantize, evaluate, search, recover or export; or reproduce,
    whose pieces are those of the whole table.
    """
    done: int
    """Finished pieces; in [0, total]."""
    total: int
    """All pieces; >= 1."""
    message: str = ""
    """What is being done, in a few words, for a person."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Live numbers by name, such as ``loss`` or ``tokens_per_second``."""


OnProgress = Callable[[Progress], None]


def never() -> bool:
    """Ask for no stop; the default where nobody steers."""
    return False


def silent(progress: Progress) -> None:
    """Report nothing; the default where nobody watches."""

"""How a name becomes an object: entries are data, targets are imported on first use.

The browser side lists entries, draws their options and reads their facts without importing torch;
the worker calls `Registry.create`, which imports the target.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from qpruner_core.errors import BadInputError, UnknownNameError

T = TypeVar("T")
OptionValue = bool | int | float | str


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what was probably meant by an unknown name, as a question with a space behind it;
    empty where nothing is near.
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]!r}? " if near else ""


@dataclass(frozen=True, slots=True)
class Option:
    """One constructor argument of an entry, with what a form needs to draw it."""

    name: str
    """Keyword of the target's constructor."""
    default: OptionValue = field(kw_only=True)
    """Value when the person chooses nothing; equals the constructor's own default."""
    low: float | None = field(default=None, kw_only=True)
    """Smallest allowed number; None for no bound or for text and switches."""
    high: float | None = field(default=None, kw_only=True)
    """Largest allowed number; None for no bound or for text and switches."""
    choices: tuple[str, ...] = field(default=(), kw_only=True)
    """Allowed texts; empty for free values."""
    help: str = field(kw_only=True)
    """One sentence for the tooltip."""

    def check(self, value: OptionValue) -> OptionValue:
        """Return the value if it fits this option.

        Raises:
            BadInputError: The value has another type, lies outside the bounds or is no choice.
        """
        wanted = type(self.default)
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not wanted:
            raise BadInputError(
                f"Option {self.name!r} was given {value!r}, but takes a {wanted.__name__} such as "
                f"{self.default!r}. Give a {wanted.__name__}."
            )
        if self.choices and value not in self.choices:
            raise BadInputError(
                f"Option {self.name!r} was given {value!r}, but takes one of "
                f"{', '.join(self.choices)}. Choose one of these."
            )
        if isinstance(value, int | float) and not isinstance(value, bool):
            low = self.low if self.low is not None else float("-inf")
            high = self.high if self.high is not None else float("inf")
            if not low <= value <= high:
                raise BadInputError(
                    f"Option {self.name!r} was given {value}, but lies between {low} and {high}. "
                    f"Choose a value in that range."
                )
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing we can do: its public name, its words for a person, and where its code is."""

    name: str
    """Public name as stored in records; never renamed."""
    title: str
    """Name on screen."""
    summary: str
    """One or two sentences: what it does and what it needs."""
    target: str
    """``"package.module:attribute"``, imported on first use."""
    options: tuple[Option, ...] = ()
    """Constructor arguments that a person may set."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Torch-free facts that the browser side reads; each registry documents its keys."""


class Registry(Generic[T]):
    """A frozen table of entries of one kind."""

    def __init__(self, kind: str, *entries: Entry) -> None:
        self._kind = kind
        self._entries = {entry.name: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise ValueError(f"two entries of the registry of {kind} carry the same name")

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    @property
    def kind(self) -> str:
        """What the entries are, in one or two words."""
        return self._kind

    def names(self) -> tuple[str, ...]:
        """Names in the order of the table."""
        return tuple(self._entries)

    def entry(self, name: str) -> Entry:
        """Return the entry of that name without importing its target.

        Raises:
            UnknownNameError: No entry carries the name.
        """
        if name in self._entries:
            return self._entries[name]
        raise UnknownNameError(
            f"There is no {self._kind} named {name!r}. {nearest(name, self._entries)}"
            f"Known: {', '.join(self._entries)}."
        )

    def target(self, name: str) -> T:
        """Import and return the attribute behind an entry, uncalled."""
        module, _, attribute = self.entry(name).target.partition(":")
        return cast("T", getattr(importlib.import_module(module), attribute))

    def options(self, name: str, given: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """Return every option of an entry: the defaults, overlaid with checked given values.

        Raises:
            BadInputError: A given option is unknown or does not fit.
        """
        known = {option.name: option for option in self.entry(name).options}
        for key in given:
            if key not in known:
                raise BadInputError(
                    f"{self._kind.capitalize()} {name!r} has no option {key!r}; it takes "
                    f"{', '.join(known) or 'none'}. Remove it or correct its name."
                )
        return {key: option.check(given.get(key, option.default)) for key, option in known.items()}

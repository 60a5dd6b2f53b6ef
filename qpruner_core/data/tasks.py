"""Multiple-choice items from folders of `<task>.jsonl`, one item a line, checked line by line.

A line is ``{"context", "choices", "gold"}``, or ``{"contexts", "continuation", "gold"}`` where the
choices are what stands before one and the same continuation, as in Winogrande. Texts are put
together as they stand, so that choices begin with the space that joins them. Only
``{"context_options", "continuation", "gold"}``, in which Winogrande is handed around, has
continuations without it: there a space joins them, as lm-evaluation-harness's winogrande does. An
``id``, a text or a whole number, may be given; without one the number of the line is it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpruner_core.errors import BadInputError, DataTooShortError
from qpruner_core.inspection import demo_folder

_EXAMPLE = '{"context": "2 + 2 =", "choices": [" 4", " 5"], "gold": 0}'
_CONTINUATION = "continuation"
_CONTEXTS = ("contexts", "context_options")
"""Keys of what stands before a continuation; behind the second a space joins it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question with its possible continuations."""

    id: str
    """Unique within its task."""
    context: str
    """What the model reads first; may be empty. Empty where every choice has a context of its
    own."""
    choices: tuple[str, ...]
    """Continuations, appended to the context as they are; two or more, none empty."""
    gold: int
    """Index of the right choice."""
    contexts: tuple[str, ...] = ()
    """What the model reads before each choice, where the choices differ in that and are otherwise
    one text; none empty. Empty: all read `context`."""

    @property
    def all_contexts(self) -> tuple[str, ...]:
        """What stands before each choice."""
        return self.contexts or (self.context,) * len(self.choices)


def read_tasks(
    source: str, items_per_task: int, seed: int = 0, names: Sequence[str] = ()
) -> dict[str, tuple[Item, ...]]:
    """Return task name -> items, tasks by name.

    Args:
        source: ``"demo"``, ``"none"``, or the path of a folder of ``*.jsonl`` files; a file's stem
            names its task.
        items_per_task: The first so many after a shuffle of its own per task; 0 for all in file
            order. A larger number keeps the items of a smaller one.
        seed: Seed of the shuffles.
        names: The tasks that are wanted; empty for all.

    Raises:
        BadInputError: The folder is missing or empty, lacks a task that is wanted, or a line does
            not fit; the first one is named.
        DataTooShortError: A file holds no item.
    """
    if source == "none":
        return {}
    folder = demo_folder() / "data" / "tasks" if source == "demo" else Path(source).expanduser()
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    if not files:
        what = "holds no *.jsonl file" if folder.is_dir() else "is not a folder that exists"
        raise BadInputError(
            f"{str(folder)!r}, given for the tasks, {what}. Give a folder with one <task>.jsonl "
            "per task, 'demo' or 'none'."
        )
    missing = [name for name in names if name not in {file.stem for file in files}]
    if missing:
        raise BadInputError(
            f"{str(folder)!r} holds no task {', '.join(map(repr, missing))}; it has "
            f"{', '.join(file.stem for file in files)}. Name some of these."
        )
    return {
        file.stem: _chosen(_read_items(file), items_per_task, seed, file.stem)
        for file in files
        if not names or file.stem in names
    }


def _chosen(items: tuple[Item, ...], n_items: int, seed: int, task: str) -> tuple[Item, ...]:
    if not n_items:
        return items
    shuffled = list(items)
    random.Random(f"{seed}:{task}").shuffle(shuffled)  # noqa: S311  not cryptographic
    return tuple(shuffled[:n_items])


def _read_items(file: Path) -> tuple[Item, ...]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"The task file {str(file)!r} is not UTF-8 (byte {error.start}). Save it as UTF-8."
        ) from error
    items: dict[str, Item] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        item = _parse_item(line, where, str(number))
        if item.id in items:
            raise _misfit(where, f"repeats the id {item.id!r}")
        items[item.id] = item
    if not items:
        raise DataTooShortError(
            f"The task file {str(file)!r} holds no item. Add items, one a line, such as "
            f"{_EXAMPLE}, or remove it."
        )
    return tuple(items.values())


def _parse_item(line: str, where: str, usual_id: str) -> Item:
    try:
        stated = json.loads(line)
    except ValueError as error:
        raise _misfit(where, f"is not JSON ({error})") from error
    if not isinstance(stated, dict):
        raise _misfit(where, f"holds a {type(stated).__name__}, not an object")
    found = next(_complaints(stated), "")
    if found:
        raise _misfit(where, found)
    name = str(stated.get("id", usual_id))
    text, texts = _keys(stated)
    if text != _CONTINUATION:
        return Item(
            id=name, context=stated[text], choices=tuple(stated[texts]), gold=stated["gold"]
        )
    contexts, choice = tuple(stated[texts]), stated[text]
    if texts == "context_options" and not choice[0].isspace():
        choice = f" {choice}"
    choices = (choice,) * len(contexts)
    return Item(id=name, context="", choices=choices, gold=stated["gold"], contexts=contexts)


def _keys(stated: Mapping[str, Any]) -> tuple[str, str]:
    """Return the keys of the one text and of the several that a line's object should have."""
    several = next((key for key in reversed(_CONTEXTS) if key in stated), "")
    if several or _CONTINUATION in stated:
        return _CONTINUATION, several or _CONTEXTS[0]
    return "context", "choices"


def _complaints(stated: Mapping[str, Any]) -> Iterator[str]:
    """Yield what does not fit about a line's object; what follows a complaint may not hold."""
    text, texts = _keys(stated)
    missing = [key for key in (text, texts, "gold") if key not in stated]
    if missing:
        yield f"lacks {', '.join(map(repr, missing))}"
    if type(stated.get("id", "")) not in (str, int):
        yield f"states 'id' as {stated['id']!r}, which is neither a text nor a whole number"
    if not isinstance(stated[text], str) or (text == _CONTINUATION and not stated[text]):
        yield f"states {text!r} as {stated[text]!r}, which is not a text"
    several, gold = stated[texts], stated["gold"]
    if not isinstance(several, list) or not all(isinstance(c, str) and c for c in several):
        yield f"states {texts!r} that are not a list of texts, none empty"
    if len(several) < 2:
        yield f"states {len(several)} {texts} where two or more are needed"
    if type(gold) is not int or not 0 <= gold < len(several):
        yield f"states 'gold' as {gold!r}, which is no index into {len(several)} {texts}"


def _misfit(where: str, found: str) -> BadInputError:
    return BadInputError(f"{where} {found}. Every line is an item such as {_EXAMPLE}; correct it.")

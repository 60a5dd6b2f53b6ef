"""The trials of a search as JSON that stays small: a plan is one letter per Linear, and the
answers to a task are a text of 0 and 1.

Ten thousand trials written out take ninety megabytes, which every write of a record and every
first look at it would pay for. Nothing else of a trial is changed, so that what a trial holds is
decided by the domain alone.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qpruner_core.errors import BadInputError

LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits
"""A plan's letters; the first stands for the first precision that is named."""
Plain = dict[str, Any]


def pack(trials: Iterable[Plain]) -> Plain:
    """Return trials as they are stored; each is changed in place.

    Args:
        trials: Trials as plain values.
    """
    linears: dict[tuple[str, ...], int] = {}
    letters: dict[str, str] = {}
    packed = []
    for trial in trials:
        plan = trial["plan"]
        names = tuple(plan["precisions"])
        text = "".join(
            letters.setdefault(name, LETTERS[len(letters)]) for name in plan["precisions"].values()
        )
        plan["precisions"] = [linears.setdefault(names, len(linears)), text]
        for result in _results(trial):
            result["correct"] = "".join("01"[answer] for answer in result["correct"])
        packed.append(trial)
    return {"linears": list(linears), "precisions": list(letters), "trials": packed}


def unpack(packed: Plain, read: Callable[[Plain], Any]) -> Iterator[Any]:
    """Give the trials that were packed; they are taken out, so that no two of them are held twice.

    Args:
        packed: What `pack` returned, after a round trip through JSON.
        read: Makes a trial of plain values.

    Raises:
        BadInputError: It is nothing that `pack` returned.
    """
    try:
        linears = packed["linears"]
        named = dict(zip(LETTERS, packed["precisions"], strict=False))
        waiting = packed["trials"][::-1]
        packed["trials"] = ()
    except (KeyError, TypeError) as error:
        raise _damaged(error) from error
    while waiting:
        trial = waiting.pop()
        try:
            index, text = trial["plan"]["precisions"]
            chosen = (named[letter] for letter in text)
            trial["plan"]["precisions"] = dict(zip(linears[index], chosen, strict=True))
            for result in _results(trial):
                result["correct"] = [answer == "1" for answer in result["correct"]]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise _damaged(error) from error
        yield read(trial)


def _damaged(error: Exception) -> BadInputError:
    return BadInputError(
        f"The trials of the search are not as they were written ({type(error).__name__}: "
        f"{error}). They need the form that this version of QPruner writes; search again."
    )


def _results(trial: Plain) -> Iterable[Plain]:
    """Return the results of a trial's tasks."""
    found: Iterable[Plain] = ((trial["metrics"] or {}).get("tasks") or {}).values()
    return found

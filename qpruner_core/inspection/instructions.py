"""Instructions with their answers, as Alpaca writes them, checked entry by entry before anything
is computed.

A file is one JSON array of objects, or JSON Lines: an object a line. What is wrong is said of the
first entry that does not fit, with its number and its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from qpruner_core.errors import BadInputError, DataTooShortError
from qpruner_core.inspection.texts import read_utf8

SUFFIXES = (".json", ".jsonl")
"""How the name of an instruction file ends; any other file is plain text."""
_KEYS = ("instruction", "input", "output")
_EXAMPLE = '{"instruction": "Add the numbers.", "input": "2, 3", "output": "5"}'
_SPACE = re.compile(r"\s*")
_DIALOGUES = ("messages", "conversations", "conversation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One example: what is asked, and what is to be answered."""

    instruction: str
    """Never blank."""
    input: str = ""
    """What the instruction is about; may be empty."""
    output: str
    """The answer; blank where the file gives none, as the published Alpaca file does here and
    there: nothing can be learned from that."""

    @property
    def is_answered(self) -> bool:
        """Whether there is an answer to learn."""
        return bool(self.output.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionCard:
    """What an instruction file holds."""

    n_examples: int
    """Those with an answer; >= 1."""
    n_with_input: int
    """Examples whose input is not empty."""
    n_characters: int
    """In all instructions, inputs and outputs together."""
    first_instruction: str
    """Instruction of the first example, whole."""
    warnings: tuple[str, ...] = ()
    """Sentences about what is odd and does no harm, such as examples that are there twice."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One JSON value of a file."""

    number: int
    """From 1."""
    line: int
    """Where it begins; from 1."""
    value: Any


def is_instruction_file(source: str) -> bool:
    """Whether a source of training text is read as instructions, by the end of its name."""
    return source.lower().endswith(SUFFIXES)


def examine(path: str | Path) -> InstructionCard:
    """Return what an instruction file holds, every entry of it checked.

    Raises:
        BadInputError: It is missing, not UTF-8, or an entry does not fit; the first one is named.
        DataTooShortError: It holds no example.
    """
    examples: list[Instruction] = []
    unanswered: list[int] = []
    further: set[str] = set()
    for entry in _entries(path):
        example = _checked(entry, path)
        further.update(entry.value)
        if example.is_answered:
            examples.append(example)
        else:
            unanswered.append(entry.line)
    further.difference_update(_KEYS)
    if not examples:
        raise no_answer(path, len(unanswered))
    return InstructionCard(
        n_examples=len(examples),
        n_with_input=sum(bool(example.input) for example in examples),
        n_characters=sum(len(e.instruction) + len(e.input) + len(e.output) for e in examples),
        first_instruction=examples[0].instruction,
        warnings=(*_unanswered(unanswered), *_warnings(examples, further)),
    )


def read_instructions(path: str | Path) -> tuple[Instruction, ...]:
    """Return the examples of a file in their order, those without an answer too.

    Raises:
        BadInputError: As for `examine`.
        DataTooShortError: It holds no example.
    """
    return tuple(_checked(entry, path) for entry in _entries(path))


def no_answer(path: str | Path, n_examples: int) -> DataTooShortError:
    """Return the refusal of a file of which no example has an answer."""
    return DataTooShortError(
        f"None of the {n_examples:,} examples in {str(path)!r} has an answer under 'output'. Give "
        f"a file with answers, such as {_EXAMPLE}."
    )


def _unanswered(lines: list[int]) -> tuple[str, ...]:
    if not lines:
        return ()
    words = "1 example has" if len(lines) == 1 else f"{len(lines):,} examples have"
    return (f"{words} no answer (the first in line {lines[0]:,}): left out of training.",)


def _warnings(examples: list[Instruction], further: set[str]) -> tuple[str, ...]:
    n_twice = len(examples) - len(set(examples))
    warnings = []
    if n_twice:
        warnings.append(
            f"{n_twice:,} of {len(examples):,} examples are there before, word for word, and are "
            f"learned as often as they stand."
        )
    if further:
        named = ", ".join(map(repr, sorted(further)[:3]))
        warnings.append(f"Keys that are not read: {named}{', ...' if len(further) > 3 else ''}.")
    return tuple(warnings)


def _entries(path: str | Path) -> Iterator[_Entry]:
    text = read_utf8(path, "instruction file")
    begin = _after_space(text, 0)
    if begin == len(text):
        raise _empty(path)
    yield from _of_array(text, path) if text[begin] == "[" else _of_lines(text, path)


def _empty(path: str | Path) -> DataTooShortError:
    return DataTooShortError(
        f"The instruction file {str(path)!r} holds no example. Give an array of objects or one "
        f"object a line, such as {_EXAMPLE}."
    )


def _of_lines(text: str, path: str | Path) -> Iterator[_Entry]:
    number = 0
    for line, words in enumerate(text.split("\n"), 1):
        if words.strip():
            number += 1
            value, _ = _decoded(words.strip(), 0, f"{path}:{line}", whole=True)
            yield _Entry(number, line, value)


def _of_array(text: str, path: str | Path) -> Iterator[_Entry]:
    """Yield the values of an array one by one, so that each is known by its line."""
    at, number, line, counted = text.index("[") + 1, 0, 1, 0
    while True:
        at = _after_space(text, at)
        if number == 0 and text[at : at + 1] == "]":
            raise _empty(path)
        line, counted = line + text.count("\n", counted, at), at
        number += 1
        where = f"{path}:{line} (entry {number})"
        value, at = _decoded(text, at, where)
        yield _Entry(number, line, value)
        at = _after_space(text, at)
        mark, at = text[at : at + 1], at + 1
        if mark == "]":
            break
        if mark != ",":
            _misfit(where, "is followed by neither a comma nor the end of the array")
    if text[at:].strip():
        _misfit(f"{path}", f"goes on after its array of {number:,} entries")


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _decoded(text: str, at: int, where: str, whole: bool = False) -> tuple[Any, int]:
    try:
        value, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        found = getattr(error, "msg", "") or str(error)
        _misfit(where, f"is not JSON ({found})")
    if whole and end < len(text):
        _misfit(where, "goes on after its first JSON value")
    return value, end


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def _checked(entry: _Entry, path: str | Path) -> Instruction:
    stated, where = entry.value, f"{path}:{entry.line} (entry {entry.number})"
    if not isinstance(stated, dict):
        _misfit(where, f"holds a {type(stated).__name__}, not an object")
    found = _complaint(stated)
    if found:
        _misfit(where, found)
    return Instruction(
        instruction=stated["instruction"],
        input=stated.get("input") or "",
        output=stated["output"],
    )


def _complaint(stated: Mapping[str, Any]) -> str:
    """Return what does not fit about an entry's object, empty when all does."""
    missing = [key for key in ("instruction", "output") if key not in stated]
    if missing:
        lacks = f"lacks {' and '.join(map(repr, missing))}"
        dialogue = next((key for key in _DIALOGUES if key in stated), None)
        return f"{lacks} and holds a dialogue under {dialogue!r}" if dialogue else lacks
    for key in _KEYS:
        text = stated.get(key)
        if text is None and key == "input":
            continue
        if not isinstance(text, str):
            return f"states {key!r} as {_short(text)}, which is not a text"
        if key == "instruction" and not text.strip():
            return f"states {key!r} without a text"
        if not _is_unicode(text):
            return f"states {key!r} with half a character (a lone surrogate)"
    return ""


def _is_unicode(text: str) -> bool:
    # JSON may escape half of a surrogate pair, which no tokenizer can encode.
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _short(value: object) -> str:
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."


def _misfit(where: str, found: str) -> NoReturn:
    raise BadInputError(
        f"{where} {found}. The file is an array of objects, or has one object a line, such as "
        f"{_EXAMPLE}; correct it."
    )

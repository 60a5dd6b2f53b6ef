"""Values to JSON and back; the only place that knows pydantic.

JSON stays standard: numbers that JSON cannot write travel as the texts ``"NaN"``, ``"Infinity"``
and ``"-Infinity"``. Unknown keys are refused, so that a record of a newer version is not read by
half. The trials of a record's search are packed (`packing`); records from before that are read
too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json as _parse
from pydantic_core import to_json as _encode
from pydantic_core import to_jsonable_python

from qpruner_core.domain.record import RunRecord, Trial
from qpruner_core.errors import BadInputError
from qpruner_core.store import packing

T = TypeVar("T")
_PACKED = "packed_trials"
"""Key in a record's search where its trials are."""


@lru_cache(maxsize=64)
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def to_json(value: object, indent: int | None = None) -> str:
    """Return a value of the domain as JSON text on one line, or indented by that many spaces."""
    if isinstance(value, RunRecord) and value.search is not None and value.search.trials:
        value = _with_packed_trials(value, value.search.trials)
    return _encode(value, indent=indent, inf_nan_mode="strings").decode()


def from_json(cls: type[T], text: str | bytes) -> T:
    """Return the value that a JSON text holds.

    Raises:
        BadInputError: No JSON, a field is missing or unknown, or a value does not fit.
    """
    if cls is RunRecord:
        return cast("T", _checked(cls, lambda: _record(text)))
    return cast("T", _checked(cls, lambda: _adapter(cast("Any", cls)).validate_json(text)))


def _with_packed_trials(record: RunRecord, trials: tuple[Trial, ...]) -> dict[str, Any]:
    if record.search is None:
        raise ValueError("a record without a search has no trials")
    bare = replace(record, search=replace(record.search, trials=()))
    plain: dict[str, Any] = to_jsonable_python(bare, inf_nan_mode="strings")
    one_by_one = (to_jsonable_python(trial, inf_nan_mode="strings") for trial in trials)
    plain["search"][_PACKED] = packing.pack(one_by_one)
    return plain


def _record(text: str | bytes) -> RunRecord:
    whole = _adapter(RunRecord).validate_json
    key = f'"{_PACKED}":'
    if (key not in text) if isinstance(text, str) else (key.encode() not in text):
        return cast("RunRecord", whole(text))
    try:
        plain = _parse(text)
        packed = plain["search"].pop(_PACKED)
    except (AttributeError, KeyError, TypeError, ValueError):
        return cast("RunRecord", whole(text))  # which says what is wrong with it
    record: RunRecord = _adapter(RunRecord).validate_python(plain)
    if record.search is None:
        raise ValueError("trials without a search")
    trials = tuple(packing.unpack(packed, _adapter(Trial).validate_python))
    return replace(record, search=replace(record.search, trials=trials))


def _checked(cls: Any, read: Callable[[], T]) -> T:
    """Return what is read; what does not fit becomes a sentence."""
    try:
        return read()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f" at {'.'.join(map(str, first['loc']))}" for _ in first["loc"][:1])
        more = error.error_count() - 1
        name = getattr(cls, "__name__", str(cls))
        raise BadInputError(
            f"The text holds no {name}: {first['msg']}{where}"
            f"{f' (and {more} more)' if more else ''}. It needs the JSON that this version of "
            f"QPruner writes; make it anew or remove it."
        ) from error


def to_plain(value: object) -> Any:
    """Return a value of the domain as dicts, lists, texts and numbers, ready for any JSON."""
    return json.loads(to_json(value))


def from_plain(cls: type[T], value: object) -> T:
    """Return the value that `to_plain` gave.

    Raises:
        BadInputError: Something is missing, unknown or does not fit.
    """
    return from_json(cls, json.dumps(value, allow_nan=False))

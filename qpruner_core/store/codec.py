"""Values to JSON and back; the only place that knows pydantic.

JSON stays standard: numbers that JSON cannot write travel as the texts ``"NaN"``, ``"Infinity"``
and ``"-Infinity"``. Unknown keys are refused, so that a record of a newer version is not read by
half.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json as _encode

from qpruner_core.errors import BadInputError

T = TypeVar("T")


@lru_cache(maxsize=64)
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def to_json(value: object, indent: int | None = None) -> str:
    """Return a value of the domain as JSON text on one line, or indented by that many spaces."""
    return _encode(value, indent=indent, inf_nan_mode="strings").decode()


def from_json(cls: type[T], text: str | bytes) -> T:
    """Return the value that a JSON text holds.

    Raises:
        BadInputError: No JSON, a field is missing or unknown, or a value does not fit.
    """
    try:
        return cast("T", _adapter(cast("Any", cls)).validate_json(text))
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

"""The line: the only place that knows the order of the rooms and joins them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qpruner_core.pipeline.line import Line

__all__ = ["Line"]


def __getattr__(name: str) -> Any:
    """Import the line when it is asked for: streaming counts its megabytes."""
    if name != "Line":
        raise AttributeError(f"there is no {name!r} here, only Line")
    from qpruner_core.pipeline.line import Line  # noqa: PLC0415 - on first use

    return Line

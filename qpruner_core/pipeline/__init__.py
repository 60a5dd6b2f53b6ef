"""The line: the only place that knows the order of the rooms and joins them."""

from qpruner_core.pipeline.line import Line

__all__ = ["Line"]
